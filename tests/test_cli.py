"""The command line: verbs, flags, files, clear errors, exit statuses."""

import contextlib
import dataclasses
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from apical.bench import studies
from apical.bench.cli import main as cli
from apical.bench.experiment.execution import Execution
from apical.bench.experiment.experiment import Experiment, from_dict
from apical.bench.storage import records
from apical.bench.studies import Entry, Study
from processes import CONTEXT

SMALL = ["--net_options.hidden", "[8]", "--epochs", "1", "--batch_size", "512"]


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Every command starts in an empty folder; the handler of SIGTERM is put back."""
    monkeypatch.chdir(tmp_path)
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)


def told(capsys: Any) -> str:
    """Standard error: one message, no traceback."""
    text = capsys.readouterr().err
    assert "Traceback" not in text
    return text


def test_help(capsys: Any) -> None:
    assert cli.main(["--help"]) == 0
    assert "apical study smoke" in capsys.readouterr().out
    assert cli.main([]) == 2
    assert cli.main(["--version"]) == 0


def test_help_and_version_load_no_torch_and_little_else() -> None:
    """Modules are counted, for the seconds depend on the machine (0.08 where this was written)."""
    code = (
        "import sys; from apical.bench.cli.main import main; "
        "main(['--help']); main(['--version']); print(*sys.modules)"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = out.stdout.splitlines()[-1].split()
    assert "apical.bench.cli.main" in loaded and not {"torch", "numpy"} & {*loaded}
    assert len(loaded) < 200


def test_help_of_verbs(capsys: Any) -> None:
    for verb in cli.VERBS:
        with pytest.raises(SystemExit, match="0"):
            cli.main([verb, "--help"])
        text = capsys.readouterr().out
        assert text.startswith(f"usage: apical {verb} [options]")
        assert "``" not in text


def test_short_help_fits_a_screen_and_is_understood(capsys: Any) -> None:
    for verb in cli.VERBS:
        texts = []
        for option in ("--help", "--help-all", "--help_all"):
            with pytest.raises(SystemExit, match="0"):
                cli.main([verb, option])
            texts.append(capsys.readouterr().out)
        short, whole, _ = texts
        assert len(short.splitlines()) <= 45 and texts[2] == whole
        assert (f"apical {verb} --help-all" in short) == (len(short) < len(whole))
        for line in whole.splitlines():
            assert len(line) <= 100 and "null" not in line and "NoneType" not in line
        for option in re.findall(r"^  (--[\w.]+)", short, re.M):
            assert len(whole.partition(f"  {option}")[2].split("\n  --")[0].split()) > 3, option


def test_every_setting_is_a_flag_with_an_explanation(capsys: Any) -> None:
    with pytest.raises(SystemExit):
        cli.main(["train", "--help-all"])
    text = capsys.readouterr().out
    names = [f.name for kind in (Experiment, Execution) for f in dataclasses.fields(kind)]
    for name in names:
        explained = text.partition(f"  --{name}")[2].split("--")[0]
        assert len(explained.split()) > 3, name


def test_list_shows_every_table(capsys: Any) -> None:
    assert cli.main(["list"]) == 0
    text = capsys.readouterr().out
    assert len(text.splitlines()) <= 40
    names = {
        "studies": "biotorch-mnist", "rules": "usf", "nets": "lenet", "data": "cifar10",
        "optimizers": "adamw", "learners": "lra", "recurrent": "srn", "tasks": "addition",
        "attacks": "pgd", "losses": "csq",
    }  # fmt: skip
    for kind, name in names.items():
        assert re.search(rf"\b{name}\b", text), kind
        assert cli.main(["list", kind]) == 0
        shown = capsys.readouterr().out
        assert re.search(rf"^  {name}\b", shown, re.M), kind
        texts = re.findall(r"^  \S+ +(\S.*)$", shown, re.M)
        assert len(texts) == len(set(texts)), kind  # one line each, which no other shares


def test_values_in_messages_can_be_pasted(capsys: Any) -> None:
    words = ["train", "--data", "mnist", "--net", "lenet", "--autocast", "fp16", "--quiet", "true"]
    assert cli.main(words) == 1
    advice = re.search(r"use (--autocast bf16) here", told(capsys))
    assert advice
    words = ["train", "--test_at", "[30]", "--optimizer_options", '{"momentum": 0.9}']
    assert cli.main(words) == 1
    shown = re.search(r"--test_at '\[30\]'", told(capsys))
    assert shown and shlex.split(shown[0]) == ["--test_at", "[30]"]


def test_a_net_and_data_of_the_current_folder_train(capsys: Any) -> None:
    Path("front_nets.py").write_text(
        "from torch import nn\n\n\n"
        "class Net(nn.Sequential):\n"
        "    def __init__(self, in_shape, num_classes):\n"
        "        layers = nn.Linear(in_shape[0], 6), nn.Tanh(), nn.Linear(6, num_classes)\n"
        "        super().__init__(*layers)\n"
    )
    Path("front_data.py").write_text(
        "import torch\nfrom torch.utils.data import DataLoader, TensorDataset\n\n"
        "x = torch.randn(60, 5, generator=torch.Generator().manual_seed(0))\n"
        "y = (x[:, 0] > 0).long()\n\n\n"
        "def make():\n    return (x, y), (x[:20], y[:20])\n\n\n"
        "def loaders():\n"
        "    sets = TensorDataset(x, y)\n"
        "    return DataLoader(sets, batch_size=10, shuffle=True), DataLoader(sets)\n"
    )
    words = "train --net front_nets:Net --rule dfa --epochs 2 --data".split()
    assert cli.main([*words, "front_data:make", "--folder", "here"]) == 0
    assert cli.main([*words, "front_data:loaders", "--folder", "there"]) == 1
    advice = told(capsys)
    assert "--batch_size 10 --shuffle true --drop_last false" in advice
    flags = advice.partition("experiment (")[2].partition(")")[0].split()
    assert cli.main([*words, "front_data:loaders", "--folder", "there", *flags]) == 0
    Path("front_broken.py").write_text("def Net(:\n")
    assert cli.main(["train", "--net", "front_broken:Net"]) == 1
    assert "net 'front_broken:Net': importing it failed: SyntaxError" in told(capsys)
    assert cli.main(["train", "--data", "front_data:make", "--net", "lenet"]) == 1
    assert "must be (channels, height, width)" in told(capsys)
    assert cli.main(["robustness", "here"]) == 1
    assert "allow it with --trust" in told(capsys)
    assert cli.main(["robustness", "here", "--trust"]) == 1
    assert "no images in [0, 1]" in told(capsys)


def test_weights_are_exported_under_the_keys_of_the_plain_net(capsys: Any) -> None:
    import safetensors.torch
    import torch

    from apical import nets
    from apical.bench import load_run

    assert cli.main(["train", "--rule", "dfa", "--folder", "here", *SMALL]) == 0
    plain = nets.build("mlp", in_shape=(1, 8, 8), num_classes=10, hidden=[8]).eval()
    x = torch.randn(3, 1, 8, 8)
    for file in ("out/net.safetensors", "net.pt"):
        assert cli.main(["export", "here", file]) == 0
        if file.endswith(".pt"):
            state = torch.load(file, weights_only=True)
        else:
            state = safetensors.torch.load_file(file)
        assert set(state) == set(plain.state_dict())
        plain.load_state_dict(state)
        torch.testing.assert_close(plain(x), load_run("here").model(x), rtol=0, atol=0)
    assert cli.main(["export", "here", "net.bin"]) == 1
    assert "must end in .safetensors or .pt" in told(capsys)
    assert cli.main(["export", "nowhere", "net.pt"]) == 1
    assert cli.main(["train", "--lr", "1e30", "--folder", "bad", *SMALL[:2]]) == 1
    assert cli.main(["export", "bad", "net.pt"]) == 1
    assert "bad is stopped" in told(capsys)


def test_tune_prints_the_curve_and_a_command_that_trains(capsys: Any) -> None:
    words = ["tune", "--rule", "fa,bp", *SMALL, "--rates", "0.01,0.03,0.1", "--jobs", "1"]
    words += ["--train_images", "300"]
    assert cli.main(words) == 0
    out = capsys.readouterr().out
    commands = [line for line in out.splitlines() if line.startswith("apical train")]
    assert len(commands) == 2 and all(" --lr " in line for line in commands)
    assert out.count("<- chosen") == 2
    for label, command in zip(("fa", "bp"), commands, strict=True):
        block = out.partition(f"{label}: learning rate ")[2].partition("apical train")[0]
        rate = re.search(r"^  (\S+) .*<- chosen", block, re.M)
        assert rate and f"--rule {label} --lr {rate[1]}" in command
    assert cli.main([*words[:-2]]) == 0  # other data, other tries
    capsys.readouterr()
    assert cli.main(words) == 0
    again = capsys.readouterr().out
    assert "choosing" not in again and out.endswith(again[again.index("\nfa: learning") :])
    assert cli.main(shlex.split(commands[0])[1:]) == 0
    for rates in ("0.01,0.02", "0,0.01", "inf", "0.01,0.01"):
        assert cli.main(["tune", "--rates", rates]) == 1
        assert "half decades" in told(capsys)
    assert cli.main(["tune", "--tries", "2"]) == 1
    assert "tries=2: must be at least 3" in told(capsys)
    for wrong in (",", "fa,", "fa,{rule: fa, init: xavier}"):
        assert cli.main(["tune", "--rule", wrong]) == 2
        assert "--rule" in told(capsys)


def test_a_command_shows_warnings_without_a_place_in_the_code() -> None:
    Path("warns.py").write_text(
        "import warnings\nfrom apical import rules\n\n"
        "warnings.warn('look out')\nMine = rules.FA()\n"
    )
    words = [sys.executable, "-m", "apical", "train", "--rule", "warns:Mine", *SMALL]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    assert "warning: look out\n" in done.stderr and "warns.py" not in done.stderr


def test_a_dry_run_says_what_would_run_and_starts_nothing(capsys: Any) -> None:
    words = ["sweep", "--lr", "0.1,0.01", "--rule", "fa,bp", "--seeds", "2", *SMALL]
    assert cli.main([*words, "--dry-run"]) == 0
    text = capsys.readouterr().out
    assert "8 runs in" in text and "  lr=0.01 rule=bp seed=1\n" in text
    assert "estimate" in text and text.endswith("nothing was started (--dry-run)\n")
    assert cli.main(["study", "smoke", "--only", "digits*", "--dry-run", "--seeds", "2"]) == 0
    text = capsys.readouterr().out
    assert "digits MLP: bp, fa," in text and "frozen, redrawn; 2 seeds, from 0; learning" in text
    assert "234 runs, tries of learning rates included, 0 finished" in text
    assert "estimate" in text and text.endswith("nothing was started (--dry-run)\n")
    words = ["tune", "--rule", "fa,{rule: kp, decay: 1e-3}", *SMALL, "--rates", "0.01,0.03"]
    assert cli.main([*words, "--dry-run"]) == 0
    text = capsys.readouterr().out
    assert "digits mlp: fa, kp; learning rates 0.01, 0.03, each tried for 1 epoch with" in text
    assert "  12 tries of learning rates, 0 finished" in text
    assert "6 x digits mlp sgd kp" in text and text.endswith("nothing was started (--dry-run)\n")
    assert not list(Path().iterdir())
    for verb in ("study smoke", "sweep", "tune"):
        assert cli.main([*verb.split(), "--jobs", "0"]) == 2
        assert "--jobs 0: must be at least 1" in capsys.readouterr().err
    assert cli.main(["sweep", "--rule", "fa,bp", *SMALL, "--folder", "here", "--jobs", "1"]) == 0
    text = capsys.readouterr().out
    assert "[1/2] rule=fa: test accuracy " in text and "[2/2] rule=bp: test accuracy " in text
    assert cli.main(["sweep", "--rule", "fa,bp,kp", *SMALL, "--folder", "here", "--dry-run"]) == 0
    assert capsys.readouterr().out.count("(finished)") == 2
    assert cli.main(["sweep", "--rule", "fa,bp", *SMALL, "--folder", "here", "--dry-run"]) == 0
    assert "nothing is left to train" in capsys.readouterr().out


def test_train_on_sequences_by_a_learner(capsys: Any) -> None:
    words = "train --task temporal-order --length 20 --net srn --epochs 1 --batches 3 --quiet true"
    learner = ["--learner", '{"learner": "lra", "reduction": "sum"}']
    assert cli.main([*words.split(), *learner]) == 0
    assert "test accuracy" in capsys.readouterr().out
    (folder,) = Path("runs/train").iterdir()
    assert folder.name.startswith("temporal_order_20-srn-lra-s0-")


def test_train_and_again(capsys: Any) -> None:
    assert cli.main(["train", "--rule", "fa", "--seed", "3", *SMALL]) == 0
    out = capsys.readouterr().out
    assert re.search(r"^test accuracy \d+\.\d\d% \(n = 360\), loss", out, re.M)
    (folder,) = Path("runs/train").iterdir()
    assert folder.name.startswith("digits-mlp-fa-s3-")
    assert str(folder) in out
    before = (folder / "records.jsonl").read_bytes()
    assert cli.main(["train", "--rule", "fa", "--seed", "3", *SMALL]) == 0
    assert (folder / "records.jsonl").read_bytes() == before
    for evaluation in ("", "robustness", "retrieval"):  # of its net: kept
        (folder / evaluation).mkdir(exist_ok=True)
        (folder / "checkpoint.previous.pt").write_text("of a run that diverged")
        assert cli.main(["train", "--rule", "fa", "--seed", "3", *SMALL, "--again"]) == 0
        assert (folder / evaluation).is_dir() and (folder / "records.jsonl").read_bytes() != before


def test_dashes_and_underscores_are_the_same(capsys: Any) -> None:
    assert cli.main(["train", "--batch-size=512", "--probe-every", "0", *SMALL[:4]]) == 0


def test_a_config_file_and_flags_over_it(capsys: Any) -> None:
    words = ["train", "--rule", "{rule: fa, init: kaiming}", "--schedule.kind", "cosine", *SMALL]
    with pytest.raises(SystemExit):
        cli.main([*words, "--print_config"])
    text = capsys.readouterr().out
    Path("run.yaml").write_text(text)
    values = yaml.safe_load(text)
    assert values["rule"] == {"rule": "fa", "init": "kaiming"}
    assert values["schedule"]["kind"] == "cosine"
    assert cli.main(["train", "--config", "run.yaml", "--seed", "7", "--folder", "here"]) == 0
    stored = from_dict(json.loads(Path("here/experiment.json").read_text())["experiment"])
    assert (stored.seed, stored.rule) == (7, {"rule": "fa", "init": "kaiming"})
    assert stored.schedule.kind == "cosine"


def test_a_mapping_of_rules(capsys: Any) -> None:
    rule = '{"fc1": "fa", "*": {"rule": "usf"}}'
    assert cli.main(["train", "--rule", rule, "--folder", "here", *SMALL]) == 0


def test_rules_that_switch(capsys: Any) -> None:
    words = ["train", "--switch", "{1: fa, 2: {rule: kp, decay: 0.01}}", *SMALL, "--epochs", "3"]
    assert cli.main([*words, "--folder", "here"]) == 0
    stored = from_dict(json.loads(Path("here/experiment.json").read_text())["experiment"])
    assert stored.switch == {1: "fa", 2: {"rule": "kp", "decay": 0.01}}
    capsys.readouterr()
    with pytest.raises(SystemExit):
        cli.main([*words, "--print_config"])
    Path("run.yaml").write_text(capsys.readouterr().out)
    assert cli.main(["train", "--config", "run.yaml", "--folder", "there"]) == 0
    again = from_dict(json.loads(Path("there/experiment.json").read_text())["experiment"])
    assert again.key == stored.key


def test_a_rule_of_the_current_folder_trains() -> None:
    Path("rule_nearby.py").write_text(
        "from apical import rules\n\nMine = rules.FA(init='kaiming')\n"
    )
    assert cli.main(["train", "--rule", "rule_nearby:Mine", "--folder", "here", *SMALL]) == 0


def test_one_clear_message(capsys: Any) -> None:
    for words, message, status in (
        (["trian"], "unknown verb 'trian'; did you mean 'train'", 2),
        (["fit"], "unknown verb 'fit'; did you mean 'train'? Allowed", 2),
        (["resume"], "apical resume: RUN missing (", 2),
        (["resume", "."], "is no run: it has no experiment.json", 1),
        (["export"], "RUN, FILE missing", 2),
        (["list", "model"], "did you mean 'nets'? Allowed", 2),
        (["train", "--dataset", "x"], "did you mean '--data'? (", 2),
        (["train", "--learning_rate", "1"], "did you mean '--lr'? (", 2),
        (["train", "--weight-decay", "1"], "did you mean '--optimizer-options.weight-decay' or", 2),
        (["tune", "--lr", "1"], "did you mean '--rates'? (", 2),
        (["train", "--rule", "fa,bp"], "apical sweep takes fa,bp, and trains once for", 2),
        (["train", "--lr=0.1,0.2"], "apical sweep takes --lr=0.1,0.2, and", 2),
        (["train", "--seeds", "3"], "apical sweep takes --seeds, and", 2),
        (["train", "--rule", "feedback alignment"], "did you mean 'fa'? Allowed", 1),
        (["train", "--device", "gpu"], "device 'gpu'. This machine has: cpu", 1),
        (["train", "--epoch", "3"], "unknown option '--epoch'; did you mean '--epochs'", 2),
        (["train", "--schedule.knd", "x"], "did you mean '--schedule.kind'", 2),
        (["train", "--lr", "x"], "--lr x: expected a number", 2),
        (
            ["train", "--schedule", "cosine"],
            "--schedule stands for several settings; give one by its name: --schedule.kind, ",
            2,
        ),
        (["train", "--start", "net.pt"], "give one by its name: --start.source, ", 2),
        (["train", "--hashing", "x"], "--hashing x: expected a mapping, as ", 2),
        (["train", "--size", "x"], "--size x: expected a whole number; leave the option out", 2),
        (["train", "--test_at", "x"], "--test_at x: expected a list", 2),
        (["train", "--foo", "1"], "train --help-all lists all options", 2),
        (["train", "--rule", "no_package.rules:Mine"], "no module 'no_package'", 1),
        (["train", "--rule", '{"rule":"fa"'], "not YAML", 2),
        (["train", "--init", "xavir"], "one of 'net', 'default',", 2),
        (["train", "extra"], "unrecognized arguments: extra", 2),
        (["train", "--epochs", "0"], "--epochs 0: must be at least 1", 1),
        (["train", "--rule", "faa"], "unknown rule 'faa'; did you mean", 1),
        (["train", "--task", "adition"], "unknown task 'adition'; did you mean 'addition'", 1),
        (["train", "--learner", "lra"], "LRA: reduction is not stated", 1),
        (["train", "--length", "x"], "--length x: expected a whole number", 2),
        (["train", "--batch-sise", "3"], "'--batch-sise'; did you mean '--batch-size'", 2),
        (["train", "--batch_sise", "3"], "'--batch_sise'; did you mean '--batch_size'", 2),
        (["train", "--train-images", "x"], "--train-images x: expected a whole number", 2),
        (["study", "smoke", "--foo-bar"], "unknown option '--foo-bar'", 2),
        (["train", "--net", "lenett"], "unknown net 'lenett'; did you mean 'lenet'", 1),
        (["train", "--data", "mnst"], "unknown data set 'mnst'; did you mean 'mnist'", 1),
        (["train", "--optimizer", "sdg"], "unknown optimizer 'sdg'; did you mean 'sgd'", 1),
        (["train", "--rule", '{"zz*": "fa"}'], "'zz*' matches no layer", 1),
        (["train", "--autocast", "fp16"], "use --autocast bf16 here", 1),
        (["train", "--config", "none.yaml"], "none.yaml: No such file", 2),
        (["study", "smoek"], "unknown study 'smoek'; did you mean 'smoke'", 1),
        (["study", "smoke", "--tier", "full"], "unknown tier of the study smoke 'full'", 1),
        (["study", "smoke", "--only", "mnist"], "unknown setting of smoke 'mnist'", 1),
        (["report", "nowhere"], "no study in nowhere", 1),
        (["check", "faa"], "unknown rule 'faa'", 1),
        (["check", "no_package.rules:Mine"], "no module 'no_package'", 1),
    ):
        assert cli.main(words) == status
        text = told(capsys)
        assert message in text
        assert text.count("\n") == 1 or "zz*" in text
        assert not Path("runs").exists()


def test_own_modules_and_folders_that_are_named_in_part_are_recognised(capsys: Any) -> None:
    Path("partly.py").write_text("def make():\n    pass\n")
    Path("pictures/train/a").mkdir(parents=True)
    for words, message in (
        (["study", "partly"], "did you mean 'partly:make'?"),
        (["study", "partly:make"], "has the arguments (): it must be a function make(tier, seeds)"),
        (["train", "--net", "partly"], "did you mean 'partly:callable'?"),
        (["train", "--rule", "partly"], "did you mean 'partly:Class'?"),
        (["train", "--data", "partly.py:make"], "name the module, not its file: partly:make"),
        (["train", "--data", "pictures"], "did you mean 'folder:pictures'?"),
        (["train", "--data", "folder:pictures"], "write folder:pictures/train, of which a fifth"),
    ):
        assert cli.main(words) in (1, 2)
        assert message in told(capsys), words
        assert not Path("runs").exists()


def test_a_run_resumes_by_its_folder(capsys: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, half = "--folder=whole", "--folder=half"
    small = ["train", "--rule", "fa", *SMALL[:2], "--batch_size", "512", "--epochs", "2"]
    assert cli.main([*small, whole]) == 0
    assert capsys.readouterr().out.splitlines()[-1].startswith("apical report whole --open ")
    saved = monkeypatch.context()
    with saved as patch:
        append, rows = records.append, []

        def killed(path: Path, *new: Any, **options: Any) -> None:
            append(path, *new, **options)
            rows.extend(new)
            if any(row["kind"] == "epoch" for row in rows):
                raise KeyboardInterrupt

        patch.setattr(records, "append", killed)
        assert cli.main([*small, half]) == 130
    assert cli.main(["export", "half", "net.pt"]) == 1
    (command,) = re.findall(r"apical (resume half)", told(capsys))
    assert cli.main(command.split()) == 0
    last = [records.read(Path(folder) / "records.jsonl")[-1] for folder in ("whole", "half")]
    assert last[0]["test_loss"] == last[1]["test_loss"]
    assert cli.main(command.split()) == 0
    assert "nothing was run" in capsys.readouterr().out


def test_help_explains_a_verb_and_a_report_goes_where_it_is_told(capsys: Any) -> None:
    with pytest.raises(SystemExit, match="0"):
        cli.main(["help", "train"])
    assert capsys.readouterr().out.startswith("usage: apical train")
    assert cli.main(["train", "--folder", "here", *SMALL]) == 0
    assert cli.main(["report", "here", "--out", "there"]) == 0
    assert Path("there/index.html").is_file() and not Path("here/report").exists()


def test_config_files_are_checked_and_never_executed(capsys: Any) -> None:
    for text, message in (
        ("epoch: 3\n", "unknown option '--epoch'; did you mean '--epochs'"),
        ("schedule: {knd: cosine}\n", "did you mean '--schedule.kind'"),
        ("a: [\n", "run.yaml: not YAML"),
        (
            'rule: !!python/object/apply:os.mkdir ["executed"]\n',
            "could not determine a constructor",
        ),
    ):
        Path("run.yaml").write_text(text)
        assert cli.main(["train", "--config", "run.yaml"]) == 2
        assert message in told(capsys)
        assert not Path("executed").exists()


def test_a_run_that_blows_up(capsys: Any) -> None:
    assert cli.main(["train", "--lr", "1e30", "--folder", "here", *SMALL[:2]]) == 1
    assert "stopped: non-finite loss in epoch 1, step" in told(capsys)


def test_a_folder_of_another_experiment(capsys: Any) -> None:
    assert cli.main(["train", "--folder", "here", *SMALL]) == 0
    assert cli.main(["train", "--folder", "here", "--seed", "5", *SMALL]) == 1
    assert "seed: 0 there, 5 here" in told(capsys)


def test_a_folder_that_is_a_file(capsys: Any) -> None:
    Path("file").write_text("")
    assert cli.main(["train", "--folder", "file/run", *SMALL]) == 1
    assert "file" in told(capsys)


# studies


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    """A study of two quick runs under the name of the smoke study."""

    def build(tier: str, seeds: int) -> Study:
        base = Experiment(net_options={"hidden": [8]}, epochs=1, batch_size=512, probe_every=0)
        entries = [
            Entry("digits", "bp", dataclasses.replace(base, seed=seed)) for seed in range(seeds)
        ]
        return Study("smoke", "Tiny", tier, tuple(entries))

    monkeypatch.setitem(studies.STUDIES, "smoke", build)


def test_study_and_report(tiny: None, capsys: Any) -> None:
    words = ["study", "smoke", "--seeds", "2", "--jobs", "1"]
    assert cli.main(words) == 0
    out = capsys.readouterr().out
    assert "estimate, from 5 timed steps" in out
    assert "2 runs finished, 0 failed" in out
    described = records.read_json("runs/smoke/study.json")
    assert described["command"] == "apical study smoke --seeds 2"
    assert cli.main(words) == 0
    assert "2 of 2 runs are finished already" in capsys.readouterr().out
    assert cli.main(["report", "runs/smoke"]) == 0
    page = Path(capsys.readouterr().out.strip())
    assert page.is_file()


def test_a_study_with_a_failed_run_ends_with_its_status(tiny: None, capsys: Any) -> None:
    def fails(tier: str, seeds: int) -> Study:
        study = tiny_build(tier, seeds)
        broken = dataclasses.replace(study.entries[0].experiment, rule="fa", lr=1e30, epochs=3)
        entries = (*study.entries, Entry("digits", "fa", broken))
        return dataclasses.replace(study, entries=entries)

    tiny_build = studies.STUDIES["smoke"]
    studies.STUDIES["smoke"] = fails  # the fixture puts the original back
    assert cli.main(["study", "smoke", "--seeds", "1", "--jobs", "1"]) == 1
    out = capsys.readouterr().out
    assert "FAILED: non-finite loss" in out
    assert "1 runs finished, 1 failed" in out


# check, by its author


RULE = '''
import dataclasses
from apical.rules import FA

@dataclasses.dataclass(frozen=True)
class Mine(FA):
    """Feedback alignment under another name."""
'''


def test_check_finds_a_rule_in_the_current_folder(capsys: Any) -> None:
    Path("my_rule.py").write_text(RULE)
    assert cli.main(["check", "my_rule:Mine"]) == 0
    assert "keeps the contract" in capsys.readouterr().out


# signals


def interruptible(words: list[str]) -> None:
    """The command in a process of its own."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    with open("out", "w") as out, open("err", "w") as err:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            status = cli.main(words)
    sys.exit(status)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("jobs", [1, 2])
def test_interrupted_runs_end_cleanly_and_go_on(
    number: int, jobs: int, tmp_path: Path, forked_workers: None
) -> None:
    words = ["study", "smoke", "--seeds", "1", "--jobs", str(jobs), "--estimate", "false"]
    process = CONTEXT.Process(target=interruptible, args=(words,))
    process.start()
    deadline = time.monotonic() + 120
    while not list(tmp_path.glob("runs/smoke/search/*/checkpoint.pt")):
        assert time.monotonic() < deadline and process.is_alive()
        time.sleep(0.02)
    os.kill(process.pid or 0, number)
    process.join(60)
    assert process.exitcode == cli.INTERRUPTED
    error = Path("err").read_text()
    assert "interrupted. Nothing is lost: the same command resumes" in error
    assert "Traceback" not in error
