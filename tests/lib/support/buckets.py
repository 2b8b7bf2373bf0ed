"""A storage emulator on the loopback that stands for Google Cloud Storage."""

import contextlib
import socket

import pytest
from gcp_storage_emulator.exceptions import NotFound
from gcp_storage_emulator.handlers import objects
from gcp_storage_emulator.server import create_server


def free_port():
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


@contextlib.contextmanager
def serve_bucket():
    """Serves gs://runs; yields the environment that leads there."""
    download = objects.download

    def with_generation(request, response, storage, *arguments, **named):
        """The emulator leaves out a header by which tensorstore tells that nothing has changed."""
        download(request, response, storage, *arguments, **named)
        with contextlib.suppress(NotFound):
            name = request.params["bucket_name"], request.params["object_id"]
            response["x-goog-generation"] = storage.get_file_obj(*name)["generation"]

    port = free_port()
    server = create_server("127.0.0.1", port, in_memory=True, default_bucket="runs")
    url = f"http://127.0.0.1:{port}"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(objects, "download", with_generation)
        server.start()
        yield {
            "STORAGE_EMULATOR_HOST": url,
            "TENSORSTORE_GCS_HTTP_URL": url,
            "EPATH_USE_TF": "false",
        }
        server.stop()
