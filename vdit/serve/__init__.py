"""`vdit serve`: a model behind the community's videos API, with a page to play with.

    service = Service(load("runs/mine"), settings)
    uvicorn.run(make_app(service))
"""

from vdit.lazy import exports

_HOMES = {
    "Limits": "schema", "Playground": "notebook", "Service": "service", "Settings": "live", "make_app": "app",
    "playground": "notebook",
}  # fmt: skip

__all__ = ["Limits", "Playground", "Service", "Settings", "make_app", "playground"]

__getattr__, __dir__ = exports(__name__, _HOMES)
