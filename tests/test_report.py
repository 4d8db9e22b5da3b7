"""report.html: the command on it, and what a browser makes of it."""

import json
import re
import shutil
import subprocess

import numpy as np
import pytest
import soundfile

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)
PROBE = """<script>addEventListener("load", () => setTimeout(() => {
  const film = () => [...document.querySelectorAll("#film img")].map(picture => +!picture.hidden).join("");
  const press = (key) => document.body.dispatchEvent(new KeyboardEvent("keydown", {key, bubbles: true}));
  const slider = document.querySelector("#film input"), shown = [film()];
  slider.value = 1;
  slider.dispatchEvent(new Event("input"));
  shown.push(film());
  for (const key of ["ArrowLeft", "ArrowLeft", "ArrowRight", "ArrowRight"]) { press(key); shown.push(film()); }
  document.querySelector("#film button").click();
  setTimeout(() => {
  const seen = {
    shown, played: film(),
    pictures: [...document.images].map(image => image.naturalWidth),
    players: [...document.querySelectorAll("audio")].map(audio => audio.duration),
    requests: performance.getEntriesByType("resource").map(entry => entry.name).filter(name => !/^data:/.test(name)),
    overflow: document.documentElement.scrollWidth - innerWidth
  };
  document.title = "seen" + JSON.stringify(seen);
  }, 1000);
}, 500))</script>"""


def test_the_command_on_a_report_grows_with_each_resumption(ddpm_command, tmp_path):
    flags = ["--num_timesteps", 10, "--hidden_size", 8, "--num_samples", 50, "--experiment_name", "a"]
    assert ddpm_command(*flags, "--epochs", 1, "--seed", 3).returncode == 0
    assert ddpm_command("--resume", "--experiment_name", "a", "--epochs", 2).returncode == 0
    (command,) = re.findall(r"<pre>(.*?)</pre>", (tmp_path / "exps/a/report.html").read_text())
    assert command == f"python ddpm.py {' '.join(map(str, flags))} --epochs 2 --seed 3"


@pytest.fixture
def report(tmp_path, ddpm_command):
    """Of a run that has learned four sounds of two kinds, with a name that a page must escape."""
    for i, kind in enumerate(["<low>", "high"] * 2):
        (tmp_path / "own" / kind).mkdir(parents=True, exist_ok=True)
        wave = np.sin(np.arange(8000) * (0.1 + 0.3 * (i % 2) + 0.01 * i))
        soundfile.write(tmp_path / "own" / kind / f"{i}.wav", 0.5 * wave, 16000)
    sizes = ["--hidden_size", 16, "--patch_size", 8, "--num_timesteps", 10, "--sampling_steps", 3, "--num_samples", 4]
    name = ["--experiment_name", "<i>two & more"]
    result = ddpm_command("--dataset", "sounds", "--data_dir", tmp_path / "own", "--epochs", 2, *sizes, *name)
    assert result.returncode == 0, result.stderr
    return tmp_path / "exps" / name[1] / "report.html"


def test_a_report_needs_no_other_file(report):
    page = report.read_text()
    sources = re.findall(r'(?:src|href)="(.{22})', page)
    assert len(sources) == 4 * 2 + 4 + 7 and all(source.startswith("data:") for source in sources)
    assert (
        '<p class="verdict">Too short to judge' in page
        and "url(" not in page
        and "<i>" not in page
        and "<low>" not in page
    )
    assert "--patch_size 8" in page and "bits per dim" in page


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here")
def test_a_browser_loads_all_steps_through_the_film_and_a_phone_need_not_scroll_sideways(report, tmp_path):
    page = tmp_path / "page.html"
    page.write_text(report.read_text() + PROBE)
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--virtual-time-budget=20000", "--window-size=400,800"]
    options.append(f"--user-data-dir={tmp_path / 'browser'}")
    command = [CHROMIUM, *options, "--dump-dom", page.as_uri()]
    dom = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout
    seen = json.loads(re.search(r"<title>seen(.*?)</title>", dom)[1])
    assert len(seen["pictures"]) == 4 + 4 + 6 and all(seen["pictures"])
    assert seen["players"] == pytest.approx([1.0] * 4, abs=0.01)
    assert seen["shown"] == ["0001", "0100", "1000", "1000", "0100", "0010"] and seen["played"] == "0001"
    assert seen["requests"] == [] and seen["overflow"] <= 0
