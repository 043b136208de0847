"""The service that cluster/serve.yaml deploys: what the file says of it counts, and no error repeats a value."""

import pytest
from pydantic import ValidationError
from ray.serve._private.application_state import override_deployment_info
from ray.serve._private.deployment_info import DeploymentInfo
from ray.serve.schema import ServeApplicationSchema

from fracray.serving.service import build
from fracray.serving.settings import ServiceSettings

SETTINGS = ServiceSettings(checkpoint="/runs/atlas", token_file="/run/token", decoders=2)


def test_an_error_does_not_repeat_a_value_which_may_be_the_token():
    with pytest.raises(ValidationError) as caught:
        ServiceSettings(checkpoint="/runs/atlas", token_file="/run/token", token="0123456789abcdef")
    assert "token" in str(caught.value)
    assert "0123456789abcdef" not in str(caught.value)


@pytest.mark.parametrize(
    ("given", "least", "most"),
    [({}, 1, 1), ({"num_replicas": 3}, 3, 3), ({"autoscaling_config": {"min_replicas": 2, "max_replicas": 5}}, 2, 5)],
)
def test_the_file_says_how_many_replicas_there_are(given, least, most):
    """As Ray Serve lays a file over what the code says; it heeds autoscaling, where there is some, before a number."""
    replica = build(SETTINGS)._bound_deployment.init_args[0]._bound_deployment
    info = DeploymentInfo(replica._deployment_config, replica._replica_config, 0, deployer_job_id="")
    file = {"import_path": "fracray.serving.service:build", "deployments": [{"name": "replica", **given}]}
    config = override_deployment_info({"replica": info}, ServeApplicationSchema(**file))["replica"].deployment_config
    scaled = config.autoscaling_config
    found = (scaled.min_replicas, scaled.max_replicas) if scaled else (config.num_replicas,) * 2
    assert found == (least, most)
