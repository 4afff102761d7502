"""Whatever bytes stand in a file, its reader gives content or the project's own error, in one line."""

import shutil
import warnings

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.fuzz.samples import SAMPLES
from tests.fuzz.worker import read

COSTLY = ("checkpoint", "exported embedding", "reference weights", "classifier", "network")
CHEAP = [name for name in SAMPLES if not name.startswith(COSTLY)]
few = settings(
    max_examples=8, deadline=None, derandomize=True, database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)  # fmt: skip


@pytest.fixture(scope="module")
def originals(tmp_path_factory):
    root = tmp_path_factory.mktemp("whole")
    for number, name in enumerate(CHEAP):
        (root / str(number)).mkdir()
        SAMPLES[name].make(root / str(number))
    return root


@pytest.mark.parametrize("name", CHEAP)
def test_a_reader_gives_content_or_the_projects_own_error(name, originals, tmp_path):
    whole, job = originals / str(CHEAP.index(name)), tmp_path / "job"
    assert read(name, whole)["outcome"] == "accepted"
    files = sorted(path.relative_to(whole) for path in whole.glob(SAMPLES[name].files) if path.is_file())

    @few
    @given(data=st.data(), noise=st.binary(max_size=40), keep=st.booleans())
    def attempt(data, noise, keep):
        file = data.draw(st.sampled_from(files))
        before = (whole / file).read_bytes()
        start = data.draw(st.integers(0, len(before)))
        end = data.draw(st.integers(start, min(len(before), start + 60)))
        shutil.rmtree(job, ignore_errors=True)
        shutil.copytree(whole, job)
        (job / file).write_bytes(before[:start] + noise + before[end:] if keep else noise)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = read(name, job)
        assert found["outcome"] in ("accepted", "refused"), found["detail"]

    attempt()


@few
@given(at=st.integers(0), bit=st.integers(0, 7))
def test_a_png_with_a_flipped_bit_is_refused_or_has_the_same_pixels(at, bit, originals):
    whole = originals / str(CHEAP.index("PNG"))
    path = sorted(whole.glob("*/*/*"))[0]
    same, before = read("PNG", whole), path.read_bytes()
    changed = bytearray(before)
    changed[at % len(before)] ^= 1 << bit
    path.write_bytes(changed)
    try:
        found = read("PNG", whole)
    finally:
        path.write_bytes(before)
    assert found["outcome"] == "refused" or found == same
