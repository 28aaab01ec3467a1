"""The page to try uploads on: several files at once, each of which can be paused, and goes on after a reload.

Its module speaks tus to ``/upload/files``, as any client could; what it shows it asks for, as any client can.
"""

from typing import Final

from intermission.supervisor.routes.pages import OURS, Page

PAGE: Final = Page(
    path="/upload",
    below="/upload/page/",
    text="upload.html",
    files=dict.fromkeys(("page.css", "upload.css", "upload.js", "icon.svg"), OURS),
    about="Show a page to try uploads on.",
)
add = PAGE.add
