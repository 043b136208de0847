"""The service that cluster/serve.yaml deploys: what the file says of it counts, and no error repeats a value."""

import asyncio

import pytest
from pydantic import ValidationError
from ray.serve._private.application_state import override_deployment_info
from ray.serve._private.deployment_info import DeploymentInfo
from ray.serve.schema import ServeApplicationSchema
from served import tiny_checkpoint

from fracray.errors import InputError, RunError
from fracray.serving.service import build
from fracray.serving.settings import ServiceSettings


def settings(checkpoint):
    return ServiceSettings(checkpoint=str(checkpoint), token_file="/run/token", decoders=2)


def replica_of(application):
    return application._bound_deployment.init_args[0]._bound_deployment


def test_an_error_does_not_repeat_a_value_which_may_be_the_token():
    with pytest.raises(ValidationError) as caught:
        ServiceSettings(checkpoint="/runs/atlas", token_file="/run/token", token="0123456789abcdef")
    assert "token" in str(caught.value)
    assert "0123456789abcdef" not in str(caught.value)


@pytest.mark.parametrize(
    ("given", "least", "most"),
    [({}, 1, 1), ({"num_replicas": 3}, 3, 3), ({"autoscaling_config": {"min_replicas": 2, "max_replicas": 5}}, 2, 5)],
)
def test_the_file_says_how_many_replicas_there_are(given, least, most, tmp_path):
    """As Ray Serve lays a file over what the code says; it heeds autoscaling, where there is some, before a number."""
    replica = replica_of(build(settings(tiny_checkpoint(tmp_path / "best"))))
    info = DeploymentInfo(replica._deployment_config, replica._replica_config, 0, deployer_job_id="")
    file = {"import_path": "fracray.serving.service:build", "deployments": [{"name": "replica", **given}]}
    config = override_deployment_info({"replica": info}, ServeApplicationSchema(**file))["replica"].deployment_config
    scaled = config.autoscaling_config
    found = (scaled.min_replicas, scaled.max_replicas) if scaled else (config.num_replicas,) * 2
    assert found == (least, most)


def test_a_replica_that_starts_later_refuses_another_checkpoint(tmp_path):
    place = tiny_checkpoint(tmp_path / "best")
    replica = replica_of(build(settings(place)))
    tiny_checkpoint(place, "efficientnet_b0")
    made = object.__new__(replica.func_or_class)
    with pytest.raises(RunError, match=f"^{place}: the service began with the checkpoint .* is there now; shut the"):
        asyncio.run(type(made).__init__(made, *replica.init_args))


def test_a_service_whose_checkpoint_is_not_there_is_not_built(tmp_path):
    with pytest.raises(InputError, match="no such checkpoint folder"):
        build(settings(tmp_path / "none"))
