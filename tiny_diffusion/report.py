"""What a run shows: GIFs, curves of the loss, and report.html, one page of all."""

import base64
import io
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from PIL import Image
from scipy.spatial import KDTree

from tiny_diffusion.files import STATIC, write, write_json
from tiny_diffusion.messages import command_line, format_value

GIF_FRAMES = 34  # keeps a GIF of colour photographs below 2 MB
MAX_PLAYERS = 40  # sounds in a report


def write_gif(path: Path, pictures: list[np.ndarray]) -> None:
    """Write an endless GIF of pictures (height, width, 3) uint8, 60 ms each, that rests on the last.

    All have one palette and no dithering, so that what stays the same keeps its colour.
    """
    if all((picture == picture[..., :1]).all() for picture in pictures):
        palette, indices = np.arange(255, -1, -1).repeat(3), (255 - picture[..., 0] for picture in pictures)
    else:
        palette, nearest = common_palette(np.concatenate([pictures[0], pictures[-1]]).reshape(-1, 3))
        indices = (nearest[tuple(np.moveaxis(picture >> 2, -1, 0))] for picture in pictures)
    frames = [Image.fromarray(index) for index in indices]
    for frame in frames:
        frame.putpalette(palette.ravel().tolist())
    settings = {"append_images": frames[1:], "duration": [60] * (len(frames) - 1) + [1500], "loop": 0}
    write(path, lambda file: frames[0].save(file, "GIF", save_all=True, **settings))


def common_palette(pixels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """256 colours for pixels (n, 3): the 32 most frequent ones, and means of others that are alike.

    Also which of them is nearest to the colour (4 r, 4 g, 4 b), in an array (64, 64, 64).
    """
    codes, counts = np.unique(pixels @ np.array([2**16, 2**8, 1]), return_counts=True)
    frequent = codes[counts.argsort()[-32:], None] >> np.array([16, 8, 0]) & 255
    others = Image.fromarray(pixels[None]).quantize(256 - len(frequent)).getpalette()
    palette = np.concatenate([frequent, np.reshape(others, (-1, 3))])
    colours = np.stack(np.meshgrid(*[np.arange(2, 256, 4)] * 3, indexing="ij"), -1)
    nearest = KDTree(palette).query(colours)[1].astype(np.uint8)
    nearest[tuple(frequent.T >> 2)] = np.arange(len(frequent))
    return palette, nearest


def write_losses(path: Path, curves: dict, xlabel: str) -> None:
    """Write a picture of losses: for each name its (x, y)."""
    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.add_subplot(xlabel=xlabel, ylabel="loss", yscale="log")
    for name, (x, y) in curves.items():
        axes.plot(x, y, label=name)
    axes.legend()
    axes.grid(alpha=0.3)
    write(path, lambda file: figure.savefig(file, dpi=120))


def write_training(folder: Path, data, history: list[dict], forward, kept) -> None:
    """The loss over the epochs, the `forward` process and the samples of `kept` checkpoints, both in batches."""
    columns, curves = {"training, as it went": "loss", "held-out items": "held_out_loss"}, {}
    for name, column in columns.items():
        found = [(row["epoch"], row[column]) for row in history if row.get(column)]
        curves |= {name: zip(*found)} if found else {}
    write_losses(folder / "loss.png", curves, "epoch")
    write_gif(folder / "forward.gif", list(data.film(forward)))
    if pictures := list(data.film(kept)):
        write_gif(folder / "training.gif", pictures)


def write_report(folder: Path, flags: dict, settings: dict, metrics: dict, film: list[np.ndarray]) -> None:
    """Write metrics.json, and report.html: all that a run has left in `folder`, on one page that needs nothing else.

    `film` are the pictures of the reverse process.
    """
    import jinja2

    if metrics:
        write_json(folder / "metrics.json", metrics)
    page = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    page.filters |= {"format": format_value, "base64": lambda path: base64.b64encode(path.read_bytes()).decode()}
    settings = {flag: value for flag, value in settings.items() if flag != "given"}
    content = {"config": settings, "command": command_line(flags), "metrics": metrics, "folder": folder}
    content["film"] = stills(film, settings["sampling_steps"])
    content["sounds"] = sorted(folder.glob("audio/*.wav"), key=lambda path: path.stem.split("_")[-1])[:MAX_PLAYERS]
    text = page.from_string((STATIC / "report.html").read_text("utf-8")).render(content)
    write(folder / "report.html", lambda file: file.write(text.encode("utf-8", "backslashreplace")))


def stills(pictures: list[np.ndarray], steps: int) -> list[tuple[int, str]]:
    """The pictures of a reverse process of `steps` steps: which step each is, and a PNG in base64."""
    encoded = []
    for picture in pictures:
        buffer = io.BytesIO()
        Image.fromarray(picture).quantize(256, dither=Image.Dither.NONE).save(buffer, "PNG")  # a quarter of the bytes
        encoded.append(base64.b64encode(buffer.getvalue()).decode())
    return list(zip(np.linspace(0, steps, len(pictures)).astype(int).tolist(), encoded))
