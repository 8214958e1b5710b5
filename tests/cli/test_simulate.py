"""hbo simulate with several policies: a table of them."""

import json

SMALL = ("--subsets", "3", "--steps", "60", "--seeds", "2")


def test_several_policies_are_a_table_the_least_regret_first(hbo):
    said = hbo("simulate", "--policy", "prop", "--policy", "hbo", *SMALL)
    assert (said.status, said.err) == (0, "")
    assert [line.split()[0] for line in said.out.splitlines()] == ["policy", "hbo", "prop"]


def test_the_table_as_json_takes_fields_and_seeds(hbo):
    arguments = ("--policy", "temp", "--policy", "uni", "--set", "update_interval=7", "--json")
    said = json.loads(hbo("simulate", *arguments, *SMALL, "--seed", "5").out)
    assert said["seeds"] == [5, 6]
    assert {row["policy"] for row in said["policies"]} == {"temp", "uni"}
    assert all(row["regret_error"] > 0 for row in said["policies"])
    alone = json.loads(hbo("simulate", *arguments, *SMALL, "--seeds", "1").out)
    assert {row["regret_error"] for row in alone["policies"]} == {None}


def test_all_are_those_that_need_no_settings_of_yours(hbo):
    quick = ("--steps", "20", "--set", "update_interval=20", "--imbalance", "1.1", "--seeds", "1")
    said = hbo("simulate", "--policy", "all", "--subsets", "3", *quick)
    names = {line.split()[0] for line in said.out.splitlines()[1:]}
    assert {"hbo", "odm", "msft"} <= names
    assert not names & {"all", "static", "replay"}


def test_what_cannot_be_is_refused_in_one_line(hbo):
    for arguments in (("--policy", "hob", "--policy", "prop"), ("--seeds", "0")):
        said = hbo("simulate", *arguments)
        assert (said.status, said.err.count("\n")) == (2, 1)
    assert "'hob'" in hbo("simulate", "--policy", "all", "--policy", "hob").err
