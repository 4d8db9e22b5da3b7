"""What a row in the table of flags is, and which values its flag takes. Light enough for -h to import."""

import argparse
import math

from tiny_diffusion.messages import format_value


def number_in(kind, low, high=math.inf, reason: str = "") -> dict:
    """Settings of an argument that is a number of `kind`, int or float, between `low` and `high`, for a `reason`."""

    def parse(text):
        value = kind(text)
        if not low <= value <= high or math.isinf(value):
            raise argparse.ArgumentTypeError(f"{text} is not in [{low}, {high}]{'; ' * bool(reason)}{reason}")
        return value

    parse.__name__ = "whole number" if kind is int else "number"  # for argparse's messages
    return {"type": parse, "metavar": "N"}


def option(default, text: str, follows: tuple | None = None, **settings) -> dict:
    """A row of the table, with argparse's settings. Where `default` is a dictionary, the flag serves these modalities.

    `follows` is (another flag, a function): where that flag decides, the default is function(configuration, default).
    """
    shown = default
    if isinstance(default, dict):
        shown = {modalities.replace(" ", "/"): value for modalities, value in default.items()}
        default = {modality: value for modalities, value in default.items() for modality in modalities.split()}
    return {"default": default, "shown": shown, "help": text, "follows": follows, "settings": settings}


def takes(row: dict, value) -> bool:
    """Whether `value` is one that argparse makes of what is typed after the flag of a row."""
    rules = row["settings"]
    if "action" in rules:
        return value is True
    if "nargs" in rules:
        fits = type(value) is list and len(value) in ([rules["nargs"]] if rules["nargs"] != "+" else range(1, 1000))
        return fits and all(takes_one(rules, part) for part in value)
    return takes_one(rules, value)


def takes_one(rules: dict, value) -> bool:
    """Whether a single value is one that argparse's settings allow."""
    if "type" in rules:
        return type(value) in (int, float) and rules["type"](str(value)) == value
    return type(value) is str and value in rules.get("choices", [value])


def parser_of(groups: dict, aliases: dict, names: str) -> argparse.ArgumentParser:
    """A parser for groups of flags, whose result has those that were given and no others; `names` of data sets."""
    parser = argparse.ArgumentParser(
        usage="python ddpm.py [--dataset NAME] [flags]",
        description="Train a diffusion model, draw from it, score it. Without flags: the dinosaur.",
        formatter_class=lambda prog: argparse.HelpFormatter(prog, max_help_position=30),
        argument_default=argparse.SUPPRESS,
        allow_abbrev=False,
    )
    for title, flags in groups.items():
        group = parser.add_argument_group(title)
        for flag, row in flags.items():
            shown = "" if row["settings"].get("action") else format_value(row["shown"])
            text = row["help"].replace("{names}", names) + (f" (default: {shown})" if shown else "")
            group.add_argument(f"--{flag}", *aliases.get(flag, []), dest=flag, help=text, **row["settings"])
    return parser
