"""What the documentation says is so: its examples run, and the files and commands it names exist.

Blocks ```` ```python ```` of the pages in docs/ run when these are built (`make docs`), where a failure is an error.
Here are those of the other files, and those whose results are judged.
"""

import contextlib
import doctest
import io
import re
import shlex
import subprocess
import sysconfig
from os import environ, pathsep
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
GENERATED = ("docs/generated/", "docs/gallery/")
PAGES = [
    *("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "examples/README.md", "docs/gallery/index.md"),
    *(
        path
        for path in sorted(path.relative_to(ROOT).as_posix() for path in DOCS.rglob("*.md"))
        if not path.startswith(GENERATED)
    ),
]
OF_OTHERS = {"python3", ".venv/bin/python", "pip", "."}  # programs that pages name


def text_of(page):
    """A page, with what it includes."""
    text = (ROOT / page).read_text("utf-8")
    return re.sub(
        r"^```\{include\} (.*)\n", lambda m: ((ROOT / page).parent / m[1]).read_text("utf-8"), text, flags=re.MULTILINE
    )


def blocks(page, language):
    """The fenced code of one language on a page."""
    text = (ROOT / page).read_text("utf-8")
    return re.findall(rf"^```{language}(?: folded| run)?\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)


def run(code):
    """The names that `code` leaves, and what it prints."""
    names, printed = {"__name__": "example"}, io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(compile(code, "example", "exec"), names)
    return names, printed.getvalue()


@pytest.fixture
def small_data(monkeypatch, tmp_path):
    """A few digits in place of every data set, and a folder of one's own to write to."""
    import sklearn.datasets

    digits = sklearn.datasets.load_digits()
    for name in ("data", "images", "target"):
        digits[name] = digits[name][:300]

    def load_digits(return_X_y=False):
        return (digits.data, digits.target) if return_X_y else digits

    def fetch_fashion_mnist(subset):
        part = slice(0, 240) if subset == "train" else slice(240, 300)
        return digits.images[part].astype(np.uint8), digits.target[part]

    monkeypatch.setattr("sklearn.datasets.load_digits", load_digits)
    monkeypatch.setattr("fastcnn.datasets.fetch_fashion_mnist", fetch_fashion_mnist)
    monkeypatch.chdir(tmp_path)
    return tmp_path


# ------------------------------------------------------------------------------------------------------------- examples


def test_readme_examples(small_data):
    pytest.importorskip("matplotlib").use("Agg")
    search, save, recipes, look, layers, network = (run(code) for code in blocks("README.md", "python"))

    names, _ = search
    assert names["search"].best_params_ in [{"cnnclassifier__conv_channels": c} for c in [(16,), (16, 32)]]
    assert names["search"].score(names["X_test"], names["y_test"]) > 0.3

    names, printed = save
    assert (small_data / "model.safetensors").is_file()
    assert float(printed.split()[-1]) == names["clf"].score(names["X_test"], names["y_test"])
    assert printed.count("epoch") == names["clf"].max_iter

    names, _ = recipes
    assert names["clf"].score(names["X"], names["y"]) > 0.9

    names, _ = look
    assert names["clf"].score(names["X"], names["y"]) > 0.5

    names, _ = layers
    assert names["clf"].network_.layers[:-1] == tuple(names["layers"])
    assert 1 <= names["clf"].best_iter_ <= names["clf"].n_iter_ == len(names["clf"].validation_scores_)

    names, printed = network
    assert names["losses"][-1] < names["losses"][0]
    assert names["y"].shape == (32, 10) and names["dx"].shape == names["x"].shape
    assert "conv2d+bias+relu+maxpool2d" in printed


def test_the_way_without_python(tmp_path):
    """From a clone to an explained model, by the commands of the page as they stand there."""
    for name in ("docs", "examples"):
        (tmp_path / name).symlink_to(ROOT / name)
    text = text_of("docs/commands.md").partition("## Your own pictures")[0]
    commands = "".join(re.findall(r"^```sh(?: run)?\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)).splitlines()
    assert len(commands) < 10
    path = {"PATH": sysconfig.get_path("scripts") + pathsep + environ["PATH"]}
    printed = {}
    for command in commands[3:]:  # those before install fastcnn
        done = subprocess.run(
            command, shell=True, cwd=tmp_path, env=environ | path, capture_output=True, text=True, timeout=120
        )
        assert done.returncode == 0, done.stderr
        printed[command.split()[1]] = done.stdout
    assert (tmp_path / "digits.safetensors").is_file()
    assert float(re.search(r"test accuracy +(.*)", printed["train"])[1]) > 0.95
    assert "most often mixed up" in printed["evaluate"] and "Conv2D" in printed["info"]
    assert printed["predict"].splitlines()[1].split()[1] == "7"
    assert "Grad-CAM" in (tmp_path / "report.html").read_text("utf-8")


@pytest.mark.small
def test_convolution_page():
    text = "\n".join(blocks("docs/convolution.md", "pycon"))
    test = doctest.DocTestParser().get_doctest(text, {}, "convolution.md", "docs/convolution.md", 0)
    out = io.StringIO()
    results = doctest.DocTestRunner(verbose=False).run(test, out=out.write)
    assert results.attempted > 20
    assert not results.failed, out.getvalue()
    assert "[[4 3 4]\n [2 4 3]\n [2 3 4]]" in text


@pytest.mark.timeout(300)
def test_cluster_page(tmp_path, monkeypatch):
    pytest.importorskip("distributed")
    monkeypatch.chdir(tmp_path)
    names, printed = run("\n".join(blocks("docs/cluster.md", "python")))
    names["client"].close()
    names["cluster"].close()
    assert set(names["search"].best_params_) == {"conv_channels", "dropout"}
    assert names["clf"].n_rounds_ == 6 and "[" in printed
    assert (tmp_path / "model.safetensors").is_file()


@pytest.mark.small
def test_contributing_examples(monkeypatch):
    # The cache is keyed by the sources of the package, which do not change with the example.
    monkeypatch.setattr("fastcnn.kernels.cpu.runtime.cache_dir", lambda: None)
    (_, layer), (kernel, _) = (run(code) for code in blocks("CONTRIBUTING.md", "python"))
    assert layer.split() == "(4, 4, 4) (3, 3, 1, 4)".split()
    np.testing.assert_array_equal(kernel["y"], np.full((2, 3), 2, np.float32))


def test_the_plan_in_architecture():
    from fastcnn import Network
    from fastcnn.layers import Conv2D, Dense, Dropout, MaxPool2D, ReLU

    (shown,) = re.findall(r"^```\n(plan: .*?)^```$", (ROOT / "docs/architecture.md").read_text("utf-8"), re.M | re.S)
    net = Network([Conv2D(8), ReLU(), MaxPool2D(2), Dropout(0.25), Dense(10)], (8, 8, 1), random_state=0, n_jobs=1)
    net.train_step(np.zeros((32, 8, 8, 1), np.float32), np.zeros(32, np.int64))

    def as_on_every_machine(text):
        # Scratch depends on the host's vectors, and with it the sums.
        return [line for line in text.strip().splitlines() if not re.search(" scratch |arena|sum of", line)]

    assert as_on_every_machine(shown) == as_on_every_machine(net.plan.describe())


@pytest.mark.small
def test_figures_are_those_that_were_measured():
    """What the pages quote, and where it stands in the results. When these change, so must the pages."""
    results = (ROOT / "bench/RESULTS.md").read_text("utf-8")
    quoted = {
        "14.0 s": "| first `fit`, cache empty | below 15 s | 14.0 s |",
        "1.70 times as long": "One process takes **1.70** (",
        "0.04 s": "| first fit, full cache | **0.04**",
        "1.1 s": "| from fastcnn import CNNClassifier | **1.13**",
        "256 MB": "| fastcnn | 177 | 222 | 256 |",
        "177 MB": "| fastcnn | 177 | 222 | 256 |",
        "94.0 %": "| 93.3% | 93.99% (3 seeds",
        "94.5 %": "| 94.2% | 94.48% (3 seeds, 174,442 parameters)",
        "95.2 %": "| 95.0% | 95.16% (3 seeds, 354,410 parameters)",
        "1.3 min": "**76** (72 to 77)",
        "4.6 min": "**278** (266 to 283)",
        "22.0 min": "**1320** (1241 to 1344)",
        "3.98 times as long for `fast` (three seeds, 3.53 to 4.16)": "- | 3.98 (3.53 to 4.16), in turns |",
        "3.85 times as long for `balanced` (two, 3.73 to 3.97)": "- | 3.85 (3.73 to 3.97), in turns |",
        "3.56 times for `fast` (three, 2.65 to 3.88)": "- | 3.56 (2.65 to 3.88), in turns |",
        "3.11 times for `balanced` (three, 2.90 to 4.50)": "- | 3.11 (2.90 to 4.50), in turns |",
        "3.15 times for `best` (three, 2.85 to 3.26)": "- | 3.15 (2.85 to 3.26), in turns, in parts |",
        "its `best` has 95.22 %, ours 95.16 %": "95.22%, ours 95.16% | reached |",
        "2.28 for five epochs of an earlier `best` of 855,402 parameters, one seed": (
            "compiled-contiguous | 855,402, not 354,410 | 5, not 32 | **0.9411** |"
        ),
        "3.43 for `fast` with 10 epochs (three, 3.16 to 3.57)": "- | 3.43 (3.16 to 3.57), in turns |",
        "3.29 for five epochs of that widest `best` (two, 3.12 to 3.46)": "- | 3.29 (3.12 to 3.46), in turns |",
        "1.8 to 1.9 times": "| 1.85 | seed 1.93, vgg 1.84 |",
        "1.4 s": "fastcnn default, n_jobs=1 1.4 s",
        "2.9 s": "fastcnn default, n_jobs=2 2.9 s",
        "1.78 times as many": "Median ratio **1.78**; mean accuracy -0.24 points.",
        "0.47 points below": "Median ratio **1.77**; mean accuracy -0.47 points.",
        "1.67 times as many": "Median ratio **1.67**; mean accuracy -0.28 points.",
        "1.3 times as long": "it takes 1.34 times as long",
        "1.8 to 6.5 times": "no cell of them below | 1.3 | 1.80",
    }
    for figure, source in quoted.items():
        assert [page for page in PAGES if figure in (ROOT / page).read_text("utf-8").replace("\n", " ")], figure
        assert source in results, f"the pages say {figure}"


# ------------------------------------------------------------------------------------------------ names that are used


@pytest.mark.small
@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page):
    for link in re.findall(r"\]\(([^)]+)\)", (ROOT / page).read_text("utf-8")):
        if link.startswith("https://"):
            continue
        path, _, anchor = link.partition("#")
        target = (ROOT / page).parent / path if path else ROOT / page
        if target.resolve().parent == DOCS / "gallery" and target.stem != "index":
            target = ROOT / "examples" / f"{target.stem}.py"  # of which the page is made
        assert target.is_file(), f"{page}: {link}"
        if anchor:
            headings = re.findall(r"^#+ (.*)$", text_of(target.resolve().relative_to(ROOT)), re.MULTILINE)
            assert anchor in [re.sub(r"[^\w -]", "", h).strip().lower().replace(" ", "-") for h in headings], link


@pytest.mark.small
@pytest.mark.parametrize("page", PAGES)
def test_files_that_are_named_exist(page):
    named = re.findall(r"`((?:fastcnn|tests|bench|docs)/[\w./]*\w)`", (ROOT / page).read_text("utf-8"))
    assert not [path for path in named if not (ROOT / path).exists()]


@pytest.mark.small
def test_every_module_is_in_the_house():
    house = blocks("docs/architecture.md", "")[0]
    modules = {path.name for path in (ROOT / "fastcnn").rglob("*.py*") if path.suffix in (".py", ".pyx")}
    on_the_map = set(re.findall(r"[\w]+\.pyx?\b", house))
    assert "conv.py" in on_the_map
    of_one_room = {path.name for path in (ROOT / "fastcnn/persistence").glob("*.py")}
    assert modules - of_one_room - {"__init__.py", "__main__.py"} <= on_the_map
    assert on_the_map <= modules | {path.name for path in (ROOT / "tests").rglob("*.py")}


@pytest.mark.small
@pytest.mark.parametrize("page", PAGES)
def test_commands_exist(page):
    from fastcnn import cli

    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE)
    lines = "".join(blocks(page, "sh")).splitlines()
    inline = re.findall(r"`((?:make|fastcnn) [a-z][^`]*)`", (ROOT / page).read_text("utf-8"))
    for line in [*lines, *inline]:
        words = shlex.split(line, comments=True)
        while re.fullmatch(r"[A-Z_]+=.*", words[0]):  # a variable of the environment
            words.pop(0)
        program, *arguments = words
        if program == "make":
            assert arguments[0] in targets, line
        elif program == "fastcnn" and arguments != ["COMMAND", "--help"]:
            cli._make_parser().parse_args(arguments)
        else:
            assert program in {"fastcnn", *OF_OTHERS} or (ROOT / program).is_file(), line
