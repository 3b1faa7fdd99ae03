"""A local Hugging Face Hub. Import these fixtures in the conftest.py of tests that use them."""

import hashlib
import http.server
import threading

import pytest
from huggingface_hub import constants as hub_constants
from huggingface_hub import file_download as hub_download

__all__ = ['hub', 'point_to_hub']


@pytest.fixture
def point_to_hub(tmp_path, monkeypatch):
    """Set what HF_ENDPOINT and HF_HOME set, which huggingface_hub reads at import."""

    def point_to(port):
        address = f'http://127.0.0.1:{port}'
        template = address + '/{repo_id}/resolve/{revision}/{filename}'
        monkeypatch.setattr(hub_constants, 'ENDPOINT', address)
        for module in (hub_constants, hub_download):  # older versions have a copy of it
            monkeypatch.setattr(module, 'HUGGINGFACE_CO_URL_TEMPLATE', template, raising=False)
        monkeypatch.setattr(hub_constants, 'HF_HUB_CACHE', str(tmp_path / 'cache'))

    return point_to


@pytest.fixture
def hub(tmp_path, point_to_hub):
    """A local Hugging Face Hub. Yields its folder of OWNER/REPO/REVISION/FILE and the requests."""
    folder, requested = tmp_path / 'hub', []

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = 'HTTP/1.1'

        def do_HEAD(self):
            self.answer()

        def do_GET(self):
            self.answer()

        def answer(self):
            path = folder / self.path.strip('/').replace('/resolve', '')
            if path.is_file():
                requested.append((self.command, self.path, self.headers.get('Range')))
                content = path.read_bytes()
                self.send_response(200)
                self.send_header('ETag', f'"{hashlib.sha256(content).hexdigest()}"')
                # one commit per OWNER/REPO/resolve/REVISION
                revision = '/'.join(self.path.split('/')[:5])
                self.send_header('X-Repo-Commit', hashlib.sha1(revision.encode()).hexdigest())
            else:
                content = b''
                self.send_response(404)
                self.send_header('X-Error-Code', 'EntryNotFound')
            self.send_header('Content-Length', str(len(content)))
            self.end_headers()
            if self.command == 'GET':
                self.wfile.write(content)

        def log_message(self, *args):
            pass

    with http.server.ThreadingHTTPServer(('127.0.0.1', 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        point_to_hub(server.server_port)
        yield folder, requested
        server.shutdown()
