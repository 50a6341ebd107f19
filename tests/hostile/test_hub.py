"""The network: a hub that lies about its files, servers that send something else, or no end."""

import hashlib
import io
import json
import shutil
import urllib.request

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ddpm_jax.data.download import download_file
from ddpm_jax.interop import choose_pipeline_files
from ddpm_jax.interop.hub import fetch_files
from tests.fake_hub import described, serving
from tests.hostile.bounds import MIB, attempt, examples, refused
from tests.hostile.mutation import JSON_VALUES, json_text, mutated

FILES = {
    "model_index.json": b"{}",
    "unet/config.json": b'{"a": 1}',
    "unet/diffusion_pytorch_model.safetensors": bytes(100),
    "scheduler/scheduler_config.json": b'{"b": 2}',
}
COMMIT = "0123456789abcdef0123456789abcdef01234567"
LISTING = {
    "id": "a/b",
    "sha": COMMIT,
    "siblings": [described(*file) for file in FILES.items()],
}
NAMES = [
    "../../../x",
    "/etc/x",
    "unet/../../../x",
    "unet\\..\\x",
    "a\0b",
    "~/x",
    "unet/config.json/",
]


class Answer(io.BytesIO):
    url = "https://here"


@pytest.fixture(scope="module")
def hub(tmp_path_factory):
    """A hub whose list of files and whose files are what a test says."""
    with serving(tmp_path_factory.mktemp("hub")) as served:
        yield served


def fetch(place, hub, listing, files):
    shutil.rmtree(place, ignore_errors=True)
    hub.repository("a/b", files)
    hub.repositories["a/b"].commits[COMMIT] = files
    hub.listing = listing
    before = outside(place)
    result = attempt(
        lambda: fetch_files("a/b", "main", choose_pipeline_files, cache_dir=place).folder,
        "a/b",
        seconds=20,
    )
    assert outside(place) == before
    return result


def outside(place):
    return {path for path in place.parent.rglob("*") if place not in (path, *path.parents)}


def holds(folder):
    for name, content in FILES.items():
        assert (folder / name).read_bytes() == content


@pytest.mark.slow
@examples(60)
@given(listing=json_text(LISTING), damaged=st.booleans(), data=st.data())
def test_what_is_fetched_is_what_was_said_and_nowhere_else(place, hub, listing, damaged, data):
    files = dict(FILES)
    if damaged:
        name = data.draw(st.sampled_from(sorted(files)))
        files[name] = data.draw(mutated(files[name]))
    result = fetch(place / "cache", hub, listing, files)
    if not refused(result):
        for about in json.loads(listing)["siblings"]:
            path = result / str(about["rfilename"]).replace("\0", "")
            if about["rfilename"] in FILES:
                stored = about.get("lfs") or about
                assert path.stat().st_size == stored["size"]


@pytest.mark.slow
@examples(40)
@given(names=st.lists(st.sampled_from(NAMES) | st.text(max_size=9), min_size=1, max_size=3))
def test_names_in_the_listing_lead_nowhere(place, hub, names):
    more = [described(name, b"evil") for name in names]
    listing = {**LISTING, "siblings": [*LISTING["siblings"], *more]}
    content = json.dumps(listing).encode("utf-8", "surrogatepass")
    result = fetch(place / "cache", hub, content, FILES | dict.fromkeys(names, b"evil"))
    if not refused(result):
        holds(result)
        assert not [p for p in result.rglob("*") if p.is_file() and p.read_bytes() == b"evil"]


@examples(40)
@given(size=JSON_VALUES, digest=JSON_VALUES, lfs=st.booleans())
def test_sizes_and_digests_of_other_types_are_refused(place, hub, size, digest, lfs):
    listing = json.loads(json.dumps(LISTING))
    about = listing["siblings"][2 if lfs else 1]
    if lfs:
        about["lfs"] |= {"size": size, "sha256": digest}
    else:
        about |= {"size": size, "blobId": digest}
    content = json.dumps(listing).encode("utf-8", "surrogatepass")
    assert refused(fetch(place / "fresh", hub, content, FILES))


def test_large_answers_are_refused(place, hub):
    result = fetch(place / "cache", hub, b'{"siblings": [' + b" " * (8 * MIB), FILES)
    assert refused(result)
    large = FILES | {"unet/config.json": bytes(8 * MIB)}
    assert refused(fetch(place / "other", hub, json.dumps(LISTING).encode(), large))


@examples(40)
@given(content=mutated(bytes(range(200))) | st.binary(max_size=300))
def test_downloads_are_the_published_bytes_or_nothing(place, content):
    whole = bytes(range(200))
    target = place / "downloads" / "file"
    target.unlink(missing_ok=True)
    known = {"size": len(whole), "sha256": hashlib.sha256(whole).hexdigest()}
    quiet = {"progress": lambda *_: None}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(urllib.request, "urlopen", lambda url, timeout: Answer(content))
        result = attempt(
            lambda: download_file(["https://here"], target, **known, **quiet), "https://here"
        )
    assert refused(result) == (content != whole)
    assert [p.name for p in target.parent.iterdir()] == ([] if refused(result) else ["file"])
