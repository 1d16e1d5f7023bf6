from __future__ import annotations

from pathlib import Path

import pytest

pytest_plugins = ["pytester"]

ROOT = Path(__file__).parents[1]


@pytest.fixture
def suite(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> pytest.Pytester:
    """A suite of its own that uses our plugin, on a machine where no program is found on the PATH but those of Python."""
    monkeypatch.delenv("MYNA_REQUIRE_LANES", raising=False)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("MYNA_NATS_SERVER", "/nowhere/nats-server")
    pytester.makeconftest("pytest_plugins = ['tests.lanes']")
    pytester.makeini(
        "[pytest]\nasyncio_default_fixture_loop_scope = function\nmarkers =\n  nats: x\n  model: x\n  cluster: x\n"
    )
    return pytester


def run(suite: pytest.Pytester, *arguments: str) -> pytest.RunResult:
    return suite.runpytest_subprocess("-p", "no:cacheprovider", "-rs", *arguments)


def test_a_lane_whose_part_is_missing_is_skipped_with_the_reason(suite: pytest.Pytester) -> None:
    suite.makepyfile("import pytest\n\n@pytest.mark.nats\ndef test_it(): raise SystemError\n\ndef test_unit(): pass\n")
    result = run(suite)
    result.assert_outcomes(passed=1, skipped=1)
    result.stdout.fnmatch_lines(["*lane nats: *no executable file*"])
    assert result.ret == 0


def test_a_required_lane_that_is_skipped_fails(suite: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MYNA_REQUIRE_LANES", "unit,nats")
    suite.makepyfile("import pytest\n\n@pytest.mark.nats\ndef test_it(): pass\n\ndef test_unit(): pass\n")
    result = run(suite)
    assert result.ret == 1
    result.stdout.fnmatch_lines(["*skipped in a required lane (nats)*no executable file*"])


def test_a_test_of_a_required_lane_is_excused_by_another_that_is_missing_and_not_required(
    suite: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MYNA_REQUIRE_LANES", "unit,model")
    both = "import pytest\n\n@pytest.mark.model\n@pytest.mark.nats\ndef test_both(): raise SystemError\n\n"
    suite.makepyfile(both + "@pytest.mark.model\ndef test_it(): pass\n\ndef test_unit(): pass\n")
    run(suite).assert_outcomes(passed=2, skipped=1)


def test_a_test_that_skips_itself_in_a_required_lane_fails(
    suite: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MYNA_REQUIRE_LANES", "unit")
    suite.makepyfile("import pytest\n\ndef test_it(): pytest.skip('not today')\n\ndef test_unit(): pass\n")
    result = run(suite)
    assert result.ret == 1
    result.stdout.fnmatch_lines(["*skipped in a required lane (unit)*not today*"])


def test_a_module_that_skips_itself_fails_where_lanes_are_required(
    suite: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MYNA_REQUIRE_LANES", "unit")
    suite.makepyfile(test_a="import pytest\npytest.importorskip('no_such_module')", test_b="def test_it(): pass")
    result = run(suite)
    assert result.ret == 1
    result.stdout.fnmatch_lines(["*was skipped whole*no_such_module*"])


def test_a_required_lane_without_any_test_fails(suite: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MYNA_REQUIRE_LANES", "unit,cluster")
    suite.makepyfile("def test_unit(): pass")
    result = run(suite)
    assert result.ret == 1
    result.stdout.fnmatch_lines(["*required lane 'cluster': no test of it ran*"])


def test_what_ran_in_any_of_several_processes_has_run(suite: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MYNA_REQUIRE_LANES", "unit,own")
    lane = "from tests.lanes import MISSING\nMISSING['own'] = lambda: None\npytest_plugins = ['tests.lanes']"
    suite.makeconftest(lane)
    suite.makeini("[pytest]\nasyncio_default_fixture_loop_scope = function\nmarkers =\n  own: x\n")
    suite.makepyfile(test_a="def test_it(): pass", test_b="import pytest\n@pytest.mark.own\ndef test_it(): pass")
    assert run(suite, "-n", "2").ret == 0


def test_what_ran_in_none_of_several_processes_and_what_was_skipped_in_one_fails(
    suite: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MYNA_REQUIRE_LANES", "unit,cluster")
    suite.makepyfile(test_a="import pytest\npytest.importorskip('no_such_module')", test_b="def test_it(): pass")
    result = run(suite, "-n", "2")
    assert result.ret == 1
    result.stdout.fnmatch_lines(["*was skipped whole*no_such_module*", "*required lane 'cluster': no test of it ran*"])


def test_an_expected_failure_is_no_skip(suite: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MYNA_REQUIRE_LANES", "unit")
    suite.makepyfile("import pytest\n\n@pytest.mark.xfail\ndef test_it(): assert False\n\ndef test_unit(): pass\n")
    assert run(suite).ret == 0


def test_a_lane_that_does_not_exist_is_refused(suite: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MYNA_REQUIRE_LANES", "unti")
    result = run(suite)
    assert result.ret != 0
    result.stderr.fnmatch_lines(["*unknown lanes: unti*"])
