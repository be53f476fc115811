"""The runner: experiments, studies, reports and the command line; needs ``apical[bench]``."""
