"""The command line: ``apical export``."""

from apical.bench.cli.parsing import add_trust, make_parser, parse


def export(words: list[str]) -> int:
    """Write the weights of a trained net under the keys of the plain net."""
    parser = make_parser(
        "export",
        "Write the weights of a finished run, under the keys of the plain net, without feedback.",
        "RUN FILE",
    )
    parser.add_argument("run", help="folder of a finished run, or its checkpoint")
    parser.add_argument("file", help="FILE.safetensors (needs safetensors) or FILE.pt")
    add_trust(parser)
    values = parse(parser, words)
    from apical.bench.evaluate.trained_net import export as write

    names = write(values["run"], values["file"], trust=values["trust"])
    print(f"{len(names)} tensors, {names[0]} to {names[-1]}: {values['file']}")
    return 0
