"""The team's server under several clients, and over a restart: what its automations knew of runs is known afterwards."""

import time

import pytest
from prefect.client.orchestration import get_client
from prefect.settings import PREFECT_API_URL, temporary_settings
from prefect.states import Crashed, Pending, Running

from benchmarks.busy_server import measure, prepare
from tests.server_fixtures import LOADED_SECONDS, TEAMS_SERVER, World, until

STORED_SECONDS = 8  # the server writes its events down every five


@pytest.mark.slow
def test_a_run_that_crashes_after_a_restart_of_the_server_starts_again(tmp_path):
    """Its end follows its begin, which Prefect's own server had forgotten, and waited for."""
    world = World(tmp_path, tmp_path, TEAMS_SERVER)
    world.start_server()
    try:
        with temporary_settings({PREFECT_API_URL: world.url}), get_client(sync_client=True) as client:
            deployment = prepare()
            time.sleep(LOADED_SECONDS)
            run = client.create_flow_run_from_deployment(deployment).id
            for state in (Pending(), Running()):
                client.set_flow_run_state(run, state)
            time.sleep(STORED_SECONDS)
            world.kill_server()
            world.start_server()
            client.set_flow_run_state(run, Crashed())
            until(lambda: client.read_flow_run(run).state_name == "Scheduled", world.server, 0.5)
    finally:
        world.kill_server()


@pytest.mark.slow
def test_several_clients_at_a_time_are_answered_and_none_is_refused():
    """Prefect's own server refuses a part of what they ask, and now and then answers nobody for a minute."""
    measured = measure(TEAMS_SERVER, clients=4, seconds=20)
    assert measured["runs"] and not measured["refused"]
