"""`python -m jaxrobust.reports RESULT`: writes the report of a result.json."""

import argparse
import sys

from jaxrobust.reports.html import write_report


def main(arguments: list[str] | None = None) -> int:
    """Writes a report and prints its path; on an error, prints a line on stderr and returns 2."""
    parser = argparse.ArgumentParser(
        prog="python -m jaxrobust.reports",
        description="Writes one self-contained HTML report from a result.json.",
    )
    parser.add_argument("result", help="the result.json of a run")
    parser.add_argument(
        "--output", help="the HTML file; report.html beside the result if not given"
    )
    options = parser.parse_args(arguments)
    try:
        print(write_report(options.result, options.output))
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
