"""The aiohttp application: every route and what stands before them."""

import ipaddress
from typing import Final

from aiohttp import web

from intermission.supervisor.config import Config
from intermission.supervisor.core import Supervisor
from intermission.supervisor.routes import (
    auth,
    connection,
    cors,
    direct,
    docs,
    events,
    extract,
    files,
    ops,
    proxies,
    quotas,
    requests,
    services,
    tasks,
    team,
    tus,
    upload_limits,
    upload_page,
)
from intermission.supervisor.routes.answers import SUPERVISOR
from intermission.supervisor.routes.guard import guard, local_only
from intermission.supervisor.routes.problems import answer_problems

ROOMS: Final = (tasks, files, events, ops, docs, extract, team, tus, quotas, upload_page, services)
"""Who adds routes, in the order of the document. The services' match any first part, so they come last."""


def make_app(supervisor: Supervisor, config: Config) -> web.Application:
    """Put the application together."""
    secret = config.jwt_secret
    identify = local_only if secret is None else auth.bearer(secret.get_secret_value())
    before = [connection.attend, answer_problems, requests.bound, cors.answer_preflights, guard(identify)]
    app = web.Application(middlewares=before, client_max_size=requests.MAX_BODY_BYTES)
    app[SUPERVISOR] = supervisor
    app[upload_limits.LIMITS] = upload_limits.UploadLimits(
        config.max_upload_bytes, config.upload_idle_s, config.upload_min_rate
    )
    app[direct.FAST] = direct.works()
    app[cors.ORIGINS] = frozenset(config.cors_origins)
    app[proxies.TRUSTED] = tuple(ipaddress.ip_network(text) for text in config.trusted_proxies)
    app.on_response_prepare.extend((cors.expose, connection.sign))
    for room in ROOMS:
        room.add(app)
    public = None if secret is None else auth.PUBLIC
    app[docs.DOCUMENT] = docs.Document(app, supervisor.registry.handlers, public)
    return app
