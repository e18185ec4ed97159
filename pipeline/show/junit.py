"""junit.xml of a verdict, as CI systems read it: a test case a gate."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from collections.abc import Iterator
from pathlib import Path

from inversion.publish import publish
from pipeline.record.manifest import Manifest


def write_junit(manifest: Manifest, path: Path) -> None:
    """The gates as test cases, each with its value and limit; what the run is as properties; times in seconds."""
    gates = manifest.verdict.gates
    failed = sum(not gate for gate in gates)
    suite = ET.Element(
        "testsuite", name="patch-rebirth", tests=str(len(gates)), failures=str(failed), errors="0",
        time=f"{sum(stage.seconds for stage in manifest.stages):.3f}",
    )  # fmt: skip
    properties = ET.SubElement(suite, "properties")
    for name, value in properties_of(manifest):
        ET.SubElement(properties, "property", name=name, value=value)
    for gate in gates:
        case = ET.SubElement(suite, "testcase", classname=f"gates.{manifest.teacher.name}", name=gate.name)
        if not gate:
            ET.SubElement(case, "failure", message=f"{gate.value:.6g} misses the limit {gate.limit:.6g}")
        ET.SubElement(case, "system-out").text = f"value {gate.value:.6g}, limit {gate.limit:.6g}"
    publish(path, ET.tostring(suite, encoding="utf-8", xml_declaration=True))


def properties_of(manifest: Manifest) -> Iterator[tuple[str, str]]:
    """Teacher, scheme, versions, and of each stage its digest, its seconds and its files' sha256."""
    yield "teacher", manifest.teacher.name
    yield "teacher.sha256", manifest.teacher.sha256
    for key in ("bits", "effort", "seed"):
        if key in manifest.recipe:
            yield key, str(manifest.recipe[key])
    for name, version in manifest.versions.items():
        if version:
            yield f"version.{name}", version
    for stage in manifest.stages:
        yield f"digest.{stage.name}", stage.digest
        yield f"seconds.{stage.name}", f"{stage.seconds:.3f}"
        for output in stage.outputs:
            yield f"sha256.{output.path}", output.sha256
