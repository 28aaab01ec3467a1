"""The aiohttp application: every route and what stands before them."""

from aiohttp import web

from intermission.supervisor.config import Config
from intermission.supervisor.core import Supervisor
from intermission.supervisor.routes import extract, files, ops, services, streams, tasks, team
from intermission.supervisor.routes.answers import SUPERVISOR
from intermission.supervisor.routes.auth import bearer
from intermission.supervisor.routes.guard import guard, local_only
from intermission.supervisor.routes.problems import answer_problems
from intermission.supervisor.routes.requests import MAX_BODY_BYTES


def make_app(supervisor: Supervisor, config: Config) -> web.Application:
    """Put the application together."""
    secret = config.jwt_secret
    identify = local_only if secret is None else bearer(secret.get_secret_value())
    app = web.Application(middlewares=[answer_problems, guard(identify)], client_max_size=MAX_BODY_BYTES)
    app[SUPERVISOR] = supervisor
    app[streams.LIMITS] = streams.Limits(config.max_upload_bytes, config.upload_idle_s)
    # The services' routes match any first part, so they come last.
    for room in (ops, tasks, files, extract, team, services):
        room.add(app)
    return app
