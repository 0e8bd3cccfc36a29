"""Counts what nextest's JUnit report says was run and what its tests say they skipped.

Usage: ci-report.py REPORT MINIMUM. Fails when fewer than MINIMUM tests ran. A test that cannot run here passes and prints
`SKIP: why`; such a test counts as skipped, not as run. A test that passed at its second attempt is named with what its
first said.
"""

import collections
import re
import sys
import xml.etree.ElementTree as tree


def main(report, minimum):
    skips = collections.Counter()
    ran = 0
    for case in tree.parse(report).getroot().iter("testcase"):
        if case.find("skipped") is not None:
            continue
        for first in case.findall("flakyFailure"):
            print(f"ci: passed at its second attempt: {case.get('classname')} {case.get('name')}: {first.get('message')}")
        output = "".join(case.findtext(name) or "" for name in ("system-out", "system-err"))
        reasons = re.findall(r"^SKIP: (.*)$", output, re.M)
        skips.update(reasons)
        ran += not reasons
    for reason, count in sorted(skips.items()):
        print(f"ci: skipped {count}: {reason}")
    print(f"ci: {ran} tests ran, {sum(skips.values())} skipped; at least {minimum} must run")
    return 0 if ran >= minimum else f"ci: only {ran} tests ran, at least {minimum} must"


sys.exit(main(sys.argv[1], int(sys.argv[2])))
