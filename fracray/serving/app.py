"""The HTTP interface: paths, answers and errors. What it calls knows no HTTP."""

import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Annotated, Any, Literal

from fastapi import Depends, FastAPI, Query, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, HTMLResponse, JSONResponse, PlainTextResponse, Response
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from fracray import __version__
from fracray.serving.counters import Counters
from fracray.serving.engine import Service
from fracray.serving.guard import Guard
from fracray.serving.limits import Admission, Limits, RefusedError, Visit
from fracray.serving.uploads import FIELD, drain, read_uploads

_TYPES = {".html": "text/html", ".js": "text/javascript", ".css": "text/css", ".svg": "image/svg+xml"}
_PAGE = {f"/{file.name}": file for file in Path(__file__).with_name("page").iterdir() if file.suffix in _TYPES}
_PAGE["/"] = _PAGE["/index.html"]
_NOTHING_FROM_ELSEWHERE = (  # the page and its script are all that a browser may run or ask
    (b"content-security-policy", b"default-src 'self'; img-src 'self' data: blob:; frame-ancestors 'none'"),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
)
_DICOM = "application/dicom"
_KEPT_NOWHERE = {"Cache-Control": "no-store"}
PIECE = 2**16  # bytes of an answer that are handed over at once


def _form(many: bool) -> dict[str, Any]:
    one = {"type": "string", "format": "binary"}
    schema = {
        "type": "object",
        "required": [FIELD],
        "properties": {FIELD: {"type": "array", "items": one} if many else one},
    }
    return {"requestBody": {"required": True, "content": {"multipart/form-data": {"schema": schema}}}}


_ERRORS: dict[int | str, dict[str, Any]] = {
    status: {
        "description": words,
        "content": {"application/json": {"schema": {"type": "object", "properties": {"error": {"type": "string"}}}}},
    }
    for status, words in (
        (400, "no whole multipart form"),
        (401, "a wrong token"),
        (408, "the upload took too long"),
        (413, "too many bytes, files or pixels"),
        (429, "the queue is full: Retry-After says when to send it again"),
        (503, "the network's process was lost, and starts again"),
    )
}


async def _in_pieces(message: Message, send: Send) -> None:
    """Send a part of a body bit by bit. The server takes the next piece once the client has taken most of the last."""
    body, more = message.get("body", b""), message.get("more_body", False)
    for start in range(0, max(1, len(body)), PIECE):
        end = start + PIECE
        await send({**message, "body": bytes(body[start:end]), "more_body": more or end < len(body)})


class _Watch:
    """Around the whole application: asks the guard, counts, cuts answers into pieces, and adds the headers that keep a
    browser to this server."""

    def __init__(self, app: ASGIApp, guard: Guard, counters: Counters, limits: Limits, paths: frozenset[str]) -> None:
        self._app, self._guard, self._counters, self._limits, self._paths = app, guard, counters, limits, paths

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request, started, status = Request(scope, receive), time.monotonic(), 500
        path = scope["path"] if scope["path"] in self._paths else "other"

        async def sending(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message = {**message, "headers": [*message["headers"], *_NOTHING_FROM_ELSEWHERE]}
                await send(message)
            else:
                await _in_pieces(message, send)

        try:
            self._guard.check(scope["path"], request.headers, scope["path"] in _PAGE)
        except RefusedError as refusal:
            await drain(request, self._limits.seconds)
            await _refused(refusal)(scope, receive, sending)
        else:
            await self._app(scope, receive, sending)
        finally:
            self._counters.requests.labels(path, str(status)).inc()
            self._counters.seconds.labels(path).observe(time.monotonic() - started)


def make_app(engine: Service, guard: Guard, limits: Limits) -> FastAPI:
    """The application, over an engine that whoever serves it has started."""
    app = FastAPI(
        title="fracray",
        version=__version__,
        summary="Fractures on radiographs, by one checkpoint. Research only, no medical device.",
        docs_url=None,  # FastAPI's own page loads scripts from the internet
        redoc_url=None,
    )
    admission = Admission(limits)
    engine.counters.gauge("fracray_requests_here", "Requests that are not answered yet", lambda: admission.requests)

    @app.exception_handler(RefusedError)
    async def refused(request: Request, refusal: RefusedError) -> Response:
        await drain(request, 0.5 if refusal.status == 408 else limits.seconds)
        return _refused(refusal)

    @app.exception_handler(HTTPException)
    async def unknown(request: Request, error: HTTPException) -> Response:
        words = {404: "no such path", 405: f"{request.method} is not answered here"}.get(
            error.status_code, str(error.detail)
        )
        return JSONResponse({"error": f"{words}; see /docs"}, error.status_code)

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> Response:
        await drain(request, limits.seconds)
        first = error.errors()[0]
        return JSONResponse({"error": f"{first['loc'][-1]}: {first['msg']}; see /docs"}, 422)

    @app.exception_handler(Exception)
    async def broken(request: Request, error: Exception) -> Response:
        return JSONResponse({"error": "a fault of the server, which its log shows; send the request again"}, 500)

    @app.exception_handler(ClientDisconnect)
    async def gone(request: Request, error: ClientDisconnect) -> Response:
        return Response(status_code=499)  # nobody reads it

    async def visiting() -> AsyncIterator[Visit]:
        visit, started = admission.enter(), time.monotonic()
        try:
            yield visit  # until the answer is sent, or nobody is there to take it
        finally:
            visit.leave(time.monotonic() - started)

    Visiting = Annotated[Visit, Depends(visiting, scope="request")]

    @app.post("/predict", openapi_extra=_form(many=True), responses=_ERRORS | {200: {"content": {_DICOM: {}}}})
    async def predict(
        request: Request,
        visit: Visiting,
        heatmap: Annotated[bool, Query(description="add the heatmap to each row, as base64 of a gray PNG")] = False,
        format: Annotated[Literal["json", "dicom-sr"], Query(description="of the answer")] = "json",
    ) -> Response:
        """The row of each picture, with the fields of `fracray.predict`; `error` where one cannot be read.

        Or, of one DICOM file and with `format=dicom-sr`, a DICOM structured report as a file.
        """
        uploads = await read_uploads(request, visit, limits)
        if format == "json":
            rows = await engine.rows(uploads, heatmap)
            return _counted(visit, JSONResponse({"rows": rows}, headers=_KEPT_NOWHERE))
        if len(uploads) != 1:
            raise RefusedError(400, f"{len(uploads)} files; send one at a time for a DICOM SR")
        report = await engine.report(uploads[0])
        return _counted(visit, Response(report, media_type=_DICOM, headers=_KEPT_NOWHERE))

    @app.post("/picture", openapi_extra=_form(many=False), responses=_ERRORS, response_class=Response)
    async def picture(request: Request, visit: Visiting) -> Response:
        """One picture at its full bit depth: rows of little-endian uint16, and in the headers how to show it.

        (value - (X-Window-Center - X-Window-Width / 2)) / X-Window-Width, between 0, black, and 1, white; the reverse
        where X-Inverted is 1.
        """
        uploads = await read_uploads(request, visit, limits)
        if len(uploads) != 1:
            raise RefusedError(400, f"{len(uploads)} files; send one picture at a time")
        found = await engine.picture(uploads[0])
        height, width = found.values.shape
        told = {
            "X-Width": width,
            "X-Height": height,
            "X-Bits": found.bits,
            "X-Window-Center": found.centre,
            "X-Window-Width": found.width,
            "X-Inverted": int(found.inverted),
        }
        return _counted(
            visit,
            Response(
                found.values.astype("<u2").tobytes(),
                media_type="application/octet-stream",
                headers={name: str(value) for name, value in told.items()} | _KEPT_NOWHERE,
            ),
        )

    @app.get("/model")
    async def model() -> dict[str, Any]:
        """The checkpoint: hash, classes, threshold, operating points, reliability on validation, conformal coverage."""
        return engine.card

    @app.get("/health")
    async def health() -> dict[str, str]:
        """Whether the server answers."""
        return {"status": "ok"}

    @app.get("/ready", responses={503: _ERRORS[503]})
    async def ready() -> dict[str, str]:
        """Whether it predicts now: 503 while the processes of the network or the decoders are started again."""
        if not engine.ready:
            raise RefusedError(503, "no network is ready; ask again in some seconds", {"Retry-After": "5"})
        return {"status": "ready"}

    @app.get("/metrics", response_class=PlainTextResponse)
    async def metrics() -> Response:
        """Counts and times, for Prometheus."""
        return Response(engine.counters.text(), media_type="text/plain; version=0.0.4; charset=utf-8")

    @app.get("/docs", include_in_schema=False)
    async def docs() -> Response:
        return HTMLResponse(_docs(app))

    @app.get("/{file:path}", include_in_schema=False)
    async def page(file: str) -> Response:
        found = _PAGE.get(f"/{file}")
        if found is None:
            raise HTTPException(404)
        return FileResponse(found, media_type=_TYPES[found.suffix])

    paths = frozenset({"/", *app.openapi()["paths"]})
    app.add_middleware(_Watch, guard=guard, counters=engine.counters, limits=limits, paths=paths)
    return app


def _counted(visit: Visit, response: Response) -> Response:
    """The response, whose bytes are held until they are sent. RefusedError 429 where too many are."""
    visit.answer(len(response.body))
    return response


def _refused(refusal: RefusedError) -> Response:
    return JSONResponse({"error": refusal.words}, refusal.status, refusal.headers)


def _docs(app: FastAPI) -> str:
    """A page that says what /openapi.json says, without a script."""
    from markupsafe import escape

    rows = [
        f"<tr><td><code>{escape(method.upper())} {escape(path)}</code></td>"
        f"<td>{escape(about.get('description') or about.get('summary', ''))}</td></tr>"
        for path, methods in app.openapi()["paths"].items()
        for method, about in methods.items()
    ]
    return (
        "<!doctype html><html lang='en'><meta charset='utf-8'><title>fracray: paths</title>"
        "<h1>fracray</h1><p>Research only, no medical device. The whole description, for programs: "
        f"<a href='/openapi.json'>/openapi.json</a>.</p><table>{''.join(rows)}</table></html>"
    )
