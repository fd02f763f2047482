"""`fedvlm infer compile | serve | classify`: inside this process, and as three real ones."""

import contextlib
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from dataclasses import replace

import pytest
import torch

from fedvlm.adapters import AdapterSpec, attach, save_adapter
from fedvlm.errors import ConfigError, DataError, IntegrityError
from fedvlm.inference.cli import _all_labels, app
from fedvlm.inference.owner import load_compiled, load_owned
from fedvlm.inference.preparation import read_images, read_preparation
from fedvlm.models import load_model
from fedvlm.seeds import ExperimentSeed
from secure.errors import ParameterError, PeerError
from secure.smpc import Plan, PlanMismatchError, Query, infer, make_identities, read_program
from secure.smpc.dealer import write_files

LABELS = ("a red circle", "a green square", "a blue bar")


def command(*arguments):
    return app([str(a) for a in arguments], prog_name="fedvlm infer", standalone_mode=False)


@pytest.fixture(scope="module")
def compiled(tmp_path_factory, tiny_clip_folder, shapes_folder):
    """A tiny CLIP compiled by the command, and identities."""
    folder = tmp_path_factory.mktemp("owner")
    command(
        "compile", folder, "--model", tiny_clip_folder, "--calibration", shapes_folder / "images"
    )
    make_identities(folder / "identities", days=1)
    return folder


def _numbers(value):
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list):
        return {number for each in value for number in _numbers(each)}
    return {float(value)} if isinstance(value, int | float) else set()


def test_what_is_handed_out_has_no_weight(compiled):
    public = {path.name: path.read_text() for path in (compiled / "public").iterdir()}
    assert sorted(public) == ["preprocessor_config.json", "program.json"]
    plan = Plan.load(compiled)
    secrets = {
        float(number)
        for tensor in (*plan.weights.values(), *plan.constants.values())
        for number in tensor.flatten()
    }
    assert len(secrets) > 10_000
    for text in public.values():
        # Zeros and ones are everywhere; what was learned is not.
        assert not (_numbers(json.loads(text)) - {0.0, 1.0}) & secrets
    assert (compiled / "weights.npz").stat().st_mode & 0o077 == 0
    with pytest.raises(ConfigError, match="holds a compiled model"):
        command("compile", compiled)


def test_an_owners_public_folder_runs_no_code(tmp_path, monkeypatch):
    marker = tmp_path / "ran"
    (tmp_path / "own.py").write_text(f"open({str(marker)!r}, 'w').close()\nclass Own: pass\n")
    settings = {"image_processor_type": "Own", "auto_map": {"AutoImageProcessor": "own.Own"}}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(settings))
    monkeypatch.setattr("builtins.input", lambda prompt="": "y")
    with pytest.raises(ConfigError, match="can't read"):
        read_preparation(tmp_path)
    assert not marker.exists()


def test_a_saved_plan_is_the_plan(compiled, shapes_folder, tmp_path):
    owned, plan = load_compiled(compiled)
    path = shapes_folder / "images" / "red-circle-filled.png"
    raw = read_preparation(compiled / "public")(read_images([path]))
    with torch.no_grad():
        expected = owned.loaded.vlm.backbone.get_image_features(**raw).pooler_output
    found = infer(plan, raw, Query("embedding")).value
    assert float((found - expected).abs().max()) < 5e-3
    (tmp_path / "public").mkdir()
    shutil.copy(compiled / "public" / "program.json", tmp_path / "public")
    with pytest.raises(ParameterError, match=r"no weights\.npz"):
        Plan.load(tmp_path)
    plan.__class__(plan.program, {}, {}).save(tmp_path)
    with pytest.raises(PlanMismatchError, match="doesn't belong"):
        Plan.load(tmp_path)


def _free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _client(compiled, folder, port, *more):
    return (
        *("--program", compiled / "public", "--identity", compiled / "identities"),
        *("--server", f"127.0.0.1:{port}", "--parcels", folder / "client", *more),
    )


def test_images_are_classified_as_in_the_clear(compiled, shapes_folder, tmp_path, capsys):
    owned, plan = load_compiled(compiled)
    paths = [shapes_folder / "images" / f"{n}-filled.png" for n in ("red-circle", "blue-bar")]
    raw = read_preparation(compiled / "public")(read_images(paths))
    with torch.no_grad():
        scores = owned.loaded.vlm.encode_image(raw) @ owned.embed_labels(LABELS).T
    write_files(plan.program, Query("scores", labels=3), 2, tmp_path)
    port = _free_port()
    serving = threading.Thread(
        target=command,
        args=(
            *("serve", compiled, "--identity", compiled / "identities", "--port", port),
            *("--parcels", tmp_path / "server", "--reveal", "scores", "--sessions", 1),
        ),
        daemon=True,
    )
    serving.start()
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
        except ConnectionRefusedError:
            assert serving.is_alive()
            time.sleep(0.1)
            continue
        break
    # That probe showed no certificate: it is no session.
    capsys.readouterr()
    command(
        *("classify", paths[0], "--labels", ",".join(LABELS), "--json", "--reveal", "scores"),
        *_client(compiled, tmp_path, port),
    )
    (record,) = json.loads(capsys.readouterr().out)
    order = scores[0].argsort(descending=True).tolist()
    assert record["labels"] == [LABELS[i] for i in order]
    assert record["scores"] == pytest.approx(scores[0][order].tolist(), abs=2e-3)
    assert record["rounds"] == plan.cost(query=Query("scores", labels=3)).rounds
    serving.join(20)
    assert not serving.is_alive()
    with pytest.raises(PeerError, match="no link to the server"):
        command(
            *("classify", paths[1], "--labels", ",".join(LABELS), "--reveal", "scores"),
            *_client(compiled, tmp_path, port),
        )


def test_bad_input_is_refused_before_a_link_is_opened(compiled, shapes_folder, tmp_path):
    image = shapes_folder / "images" / "red-circle-filled.png"
    (tmp_path / "client").mkdir()
    shutil.copytree(compiled / "identities", tmp_path / "identities")
    end = _client(compiled, tmp_path, 1)
    for arguments, error, message in [
        ((tmp_path / "none.png", "--labels", "a,b"), DataError, "No such file"),
        ((shapes_folder / "captions.csv", "--labels", "a,b"), DataError, "not an image"),
        ((image, "--labels", "a"), ConfigError, "2 to 256"),
        ((image,), ConfigError, "2 to 256"),
        ((image, "--label", "a" * 257, "--label", "b"), ParameterError, "1 to 256 characters"),
        ((image, "--labels", "a,a"), ConfigError, "different"),
        ((image, "--labels", "a,b", "--k", "3"), ParameterError, "at most the 2"),
        ((image, "--labels", "a,b", "--reveal", "embedding"), ConfigError, "top or scores"),
        ((image, "--labels", "a,b", "--dealer", "x:1"), ConfigError, "comes from"),
    ]:
        with pytest.raises(error, match=message):
            command("classify", *arguments, *end)
    with pytest.raises(ConfigError, match="HOST:PORT"):
        command("classify", image, "--labels", "a,b", *end, "--server", "nowhere")
    # A processor of another size than the program's.
    shutil.copytree(compiled / "public", tmp_path / "public")
    processor = tmp_path / "public" / "preprocessor_config.json"
    settings = json.loads(processor.read_text())
    settings |= {"size": {"shortest_edge": 24}, "crop_size": {"height": 24, "width": 24}}
    processor.write_text(json.dumps(settings))
    with pytest.raises(ParameterError, match="compiled for"):
        command("classify", image, "--labels", "a,b", *_client(tmp_path, tmp_path, 1))
    processor.unlink()
    with pytest.raises(ConfigError, match="whole public folder"):
        command("classify", image, "--labels", "a,b", *_client(tmp_path, tmp_path, 1))
    (tmp_path / "public" / "stem.json").write_text('{"stem": "another"}')
    with pytest.raises(ConfigError, match="another image stem"):
        command("classify", image, "--labels", "a,b", *_client(tmp_path, tmp_path, 1))


def test_m8_a_label_may_hold_a_comma():
    assert _all_labels(["a, b"], ["a cat, asleep", "c"]) == ["a", "b", "a cat, asleep", "c"]
    with pytest.raises(ConfigError, match="commas and all"):
        _all_labels([], ["a cat, asleep"])


def test_m8_damaged_files_of_an_owner_are_one_clear_error(compiled, shapes_folder, tmp_path):
    folder = tmp_path / "owner"
    shutil.copytree(compiled, folder)
    image = read_images([shapes_folder / "images" / "red-circle-filled.png"])
    draw = random.Random(5)
    note, processor = folder / "owner.json", folder / "public" / "preprocessor_config.json"
    for text in ("{}", "[]", "[" * 9999, '{"model": 5, "run": 1, "weights_sha256": "x"}', "\xff"):
        note.write_text(text, encoding="latin-1")
        with pytest.raises(ConfigError, match="no compiled model"):
            load_compiled(folder)
    whole = json.loads(processor.read_text())
    odd = (None, -1, 0, "x", [], {}, 1e300, True, {"height": -1, "width": 0})
    for name in sorted(whole):
        for value in draw.sample(odd, 3):
            processor.write_text(json.dumps({**whole, name: value}))
            with contextlib.suppress(ConfigError):
                read_preparation(folder / "public")(image)
    for data in (b"", b"\xff\xfe", json.dumps(whole).encode()[:-9], b"[]", b"5"):
        processor.write_bytes(data)
        with pytest.raises(ConfigError, match="preprocessor_config"):
            read_preparation(folder / "public")(image)
    processor.unlink()
    for data in (b"", b"\xff\xfe", b"[" * 9999, b"5"):
        (folder / "public" / "stem.json").write_bytes(data)
        with pytest.raises(ConfigError, match=r"stem\.json"):
            read_preparation(folder / "public")


def _run_folder(folder, tiny_clip_folder, spec):
    """Save an adapter that does something, as a run leaves it."""
    vlm = load_model(str(tiny_clip_folder)).vlm
    view = attach(vlm, spec, ExperimentSeed(0))
    generator = torch.Generator().manual_seed(3)
    view.write((0.05 * torch.randn(view.size, generator=generator)).numpy())
    save_adapter(vlm, spec, folder / "adapter")
    parts = {key: {} for key in ("summary", "protection", "versions")}
    result = {**parts, "rounds": [], "leakage": [], "privacy": None, "seed": 0}
    config = {"model": str(tiny_clip_folder)}
    (folder / "result.json").write_text(json.dumps({**result, "config": config}))
    return vlm


def test_an_adapted_model_of_a_run_is_compiled(tiny_clip_folder, shapes_folder, tmp_path):
    adapted = _run_folder(tmp_path, tiny_clip_folder, AdapterSpec("lora", rank=4))
    images = shapes_folder / "images"
    command("compile", tmp_path / "owner", "--run", tmp_path, "--calibration", images)
    owned, plan = load_compiled(tmp_path / "owner")
    raw = owned.preparation(read_images([images / "red-circle-filled.png"]))
    with torch.no_grad():
        expected = adapted.eval().backbone.get_image_features(**raw).pooler_output
        base = load_model(str(tiny_clip_folder)).vlm.backbone.get_image_features(**raw)
    found = infer(plan, raw, Query("embedding")).value
    assert float((found - expected).abs().max()) < 5e-3
    assert float((found - base.pooler_output).abs().max()) > 5e-2
    assert torch.allclose(owned.embed_labels(["a red circle"]).norm(dim=-1), torch.ones(1))
    # The run goes on: what is served would no longer be what embeds the labels.
    _run_folder(tmp_path, tiny_clip_folder, AdapterSpec("lora", rank=2))
    with pytest.raises(IntegrityError, match="has changed"):
        load_compiled(tmp_path / "owner")


def test_what_has_no_private_counterpart_is_refused(tiny_clip_folder, tmp_path):
    _run_folder(tmp_path, tiny_clip_folder, AdapterSpec("feature"))
    with pytest.raises(ConfigError, match="feature gate"):
        load_owned(run=tmp_path)
    with pytest.raises(ConfigError, match="leave --model out"):
        command("compile", tmp_path / "owner", "--run", tmp_path, "--model", "x")
    with pytest.raises(ConfigError, match="no images"):
        (tmp_path / "empty").mkdir()
        command("compile", tmp_path / "o", "--calibration", tmp_path / "empty")
    with pytest.raises(ConfigError, match="fedvlm infer compile"):
        load_compiled(tmp_path)


class Programs:
    """Runs `fedvlm infer …` as processes, and ends those that still run."""

    def __init__(self, folder):
        self.folder, self.started = folder, []

    def start(self, *arguments):
        process = subprocess.Popen(
            [sys.executable, "-m", "fedvlm.cli", "infer", *map(str, arguments)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=self.folder,
            env=os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
        )
        self.started.append(process)
        return process

    def run(self, *arguments):
        process = self.start(*arguments)
        out, errors = process.communicate(timeout=120)
        return process.returncode, out, errors

    def end(self):
        for process in self.started:
            if process.poll() is None:
                process.kill()
            process.communicate(timeout=20)


@pytest.fixture
def programs(tmp_path):
    running = Programs(tmp_path)
    yield running
    running.end()


def _port_of(process, stream):
    line = ""
    while "listening" not in line:
        line = stream.readline()
        assert line, process.communicate()
    return int(line.rsplit(" ", 1)[1].rsplit(":", 1)[-1])


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_three_processes_and_their_ends(programs, shapes_folder, tiny_clip_folder):
    images = shapes_folder / "images"
    model = ("--model", tiny_clip_folder, "--calibration", images)
    assert programs.run("dealer", "identities", "identities")[0] == 0
    code, out, errors = programs.run("compile", "owner", *model)
    assert code == 0, errors
    assert "hand out owner/public" in out
    assert "semi-honest" in errors
    dealing = programs.start(
        *("dealer", "serve", "owner/public/program.json"),
        *("--identity", "identities", "--port", 0),
    )
    dealer = f"127.0.0.1:{_port_of(dealing, dealing.stdout)}"

    def serve():
        process = programs.start(
            *("serve", "owner", "--identity", "identities", "--dealer", dealer),
            *("--port", 0, "--max-k", 3),
        )
        return process, f"127.0.0.1:{_port_of(process, process.stderr)}"

    serving, server = serve()
    path = images / "red-circle-filled.png"
    labels = ",".join(LABELS)
    ask = ("--program", "owner/public", "--identity", "identities", "--labels", labels)
    owned, _ = load_compiled(programs.folder / "owner")
    raw = owned.preparation(read_images([path]))
    with torch.no_grad():
        scores = (owned.loaded.vlm.encode_image(raw) @ owned.embed_labels(LABELS).T)[0]
    links = ("--server", server, "--dealer", dealer)
    code, out, errors = programs.run("classify", path, *ask, *links, "--k", 3)
    assert code == 0, errors
    expected = [LABELS[i] for i in scores.argsort(descending=True).tolist()]
    assert out.strip() == f"{path}: {', '.join(expected)}"

    # More than the owner reveals, a certificate of another authority, another program: refused.
    code, _, errors = programs.run("classify", path, *ask, *links, "--reveal", "scores")
    assert (code, errors.count("\n")) == (3, 1)
    assert "doesn't reveal 'scores'" in errors
    programs.run("dealer", "identities", "strangers")
    code, _, errors = programs.run("classify", path, *ask, *links, "--identity", "strangers")
    assert code == 3
    assert "not of this authority" in errors
    other = programs.folder / "other"
    shutil.copytree(programs.folder / "owner" / "public", other)
    renamed = replace(read_program(other / "program.json"), family="X")
    (other / "program.json").write_text(renamed.to_json())
    code, _, errors = programs.run("classify", path, *ask, *links, "--program", other)
    assert code == 3
    assert "different programs" in errors

    # The owner dies in the midst of many queries.
    asking = programs.start("classify", *[path] * 500, *ask, *links)
    assert asking.stdout.readline()
    time.sleep(0.05)
    serving.send_signal(signal.SIGKILL)
    _, errors = asking.communicate(timeout=60)
    assert asking.returncode == 3
    assert errors.strip().splitlines()[-1].startswith("error: ")
    assert "Traceback" not in errors
    # Another owner's process with the same dealer goes on.
    serving, server = serve()
    code, out, _ = programs.run("classify", path, *ask, "--server", server, "--dealer", dealer)
    assert (code, out.strip()) == (0, f"{path}: {expected[0]}")
    # The dealer dies: a clean error too, and the owner goes on listening.
    dealing.send_signal(signal.SIGKILL)
    code, _, errors = programs.run("classify", path, *ask, "--server", server, "--dealer", dealer)
    assert code == 3
    assert "no link to the dealer" in errors
    assert serving.poll() is None
    serving.terminate()
    assert serving.wait(20) == 0
