"""A storage emulator on the loopback that stands for Google Cloud Storage."""

import contextlib
import socket

import pytest
from gcp_storage_emulator import server as server_module
from gcp_storage_emulator.exceptions import NotFound
from gcp_storage_emulator.handlers import objects


def free_port():
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


@contextlib.contextmanager
def serve_bucket():
    """Serves gs://runs; yields the environment that leads there."""
    download, ls = objects.download, objects.ls

    def with_generation(request, response, storage, *arguments, **named):
        """The emulator leaves out a header by which tensorstore tells that nothing has changed."""
        download(request, response, storage, *arguments, **named)
        with contextlib.suppress(NotFound):
            name = request.params["bucket_name"], request.params["object_id"]
            response["x-goog-generation"] = storage.get_file_obj(*name)["generation"]

    def within_offsets(request, response, storage, *arguments, **named):
        """The emulator lists all names, whatever range of them tensorstore asks for."""
        start, end = (request.query.get(f"{side}Offset", [""])[0] for side in ("start", "end"))
        write = response.json

        def chosen(listed):
            items = listed["items"]
            listed["items"] = [
                item
                for item in items
                if start <= item["name"] and not (end and item["name"] >= end)
            ]
            write(listed)

        response.json = chosen
        ls(request, response, storage, *arguments, **named)

    port = free_port()
    server = server_module.create_server("127.0.0.1", port, in_memory=True, default_bucket="runs")
    url = f"http://127.0.0.1:{port}"
    with pytest.MonkeyPatch.context() as patch:
        ours = {download: with_generation, ls: within_offsets}
        handlers = tuple(
            (path, {verb: ours.get(function, function) for verb, function in verbs.items()})
            for path, verbs in server_module.HANDLERS
        )
        patch.setattr(server_module, "HANDLERS", handlers)
        server.start()
        yield {
            "STORAGE_EMULATOR_HOST": url,
            "TENSORSTORE_GCS_HTTP_URL": url,
            "EPATH_USE_TF": "false",
        }
        server.stop()
