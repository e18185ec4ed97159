"""report.html and junit.xml of a run folder, made from its manifest (and its images, for pictures)."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from pathlib import Path

from inversion.publish import publish
from pipeline.record.lock import require_no_way_out
from pipeline.record.manifest import Manifest, load_finished
from pipeline.show.page.page import page_of


def write_report(manifest: Manifest, folder: Path) -> Path:
    """`report.html`: self-contained, no script, no network."""
    path = folder / "report.html"
    publish(path, page_of(manifest, folder).encode())
    return path


def rewrite_report(folder: Path) -> Path:
    """`report.html` of a finished run again; `InputError` where its manifest does not hold a whole verdict."""
    manifest = load_finished(folder)
    require_no_way_out(folder)
    return write_report(manifest, folder)


def write_junit(manifest: Manifest, path: Path) -> None:
    """The gates as test cases, for CI systems."""
    gates = manifest.verdict.gates
    failed = sum(not gate for gate in gates)
    suite = ET.Element("testsuite", name="patch-rebirth", tests=str(len(gates)), failures=str(failed), errors="0")
    for gate in gates:
        case = ET.SubElement(suite, "testcase", classname=f"gates.{manifest.teacher.name}", name=gate.name)
        if not gate:
            ET.SubElement(case, "failure", message=f"{gate.value:.6g} misses the limit {gate.limit:.6g}")
    publish(path, ET.tostring(suite, encoding="utf-8", xml_declaration=True))
