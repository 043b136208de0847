"""A Ray node provider for AWS that starts a node on demand when AWS has no spot capacity.

Ray alone repeats the same spot request: after a refused launch it does not choose another type of node
(ray/autoscaler/v2/instance_manager/subscribers/cloud_resource_monitor.py looks only at time-outs).

cluster/gpu.yaml names this class as the `module` of its provider. `ray up` imports it on the laptop, the autoscaler on
the head. Nothing else in fracray imports it, because it needs boto3.
"""

import logging
from typing import Any

from ray.autoscaler.node_launch_exception import NodeLaunchException

try:
    from ray.autoscaler._private.aws.node_provider import AWSNodeProvider
except ImportError as error:
    raise ImportError(f"AWS: {error}; pip install --require-hashes -r cluster/aws.lock") from error

MARKET = "InstanceMarketOptions"  # the key of a node_config that requests spot; without it AWS launches on demand
# The errors with which AWS says that it has no spot capacity of this type, or that the account's limit is reached.
# Other errors (rights, the image) would also fail on demand, or pass soon (too many requests at once).
NO_SPOT = frozenset(
    {
        "InsufficientInstanceCapacity",
        "InsufficientHostCapacity",
        "MaxSpotInstanceCountExceeded",
        "SpotMaxPriceTooLow",
        "Unsupported",
    }
)

logger = logging.getLogger(__name__)


class SpotFirst(AWSNodeProvider):
    """Launches nodes as their `node_config` says, and on demand those that AWS does not give on spot."""

    def _create_node(self, node_config: dict[str, Any], tags: dict[str, str], count: int) -> dict[str, Any]:
        """Launch up to `count` nodes, {id: instance}; each launch tries spot first, in every zone of the file.

        AWS may give only some of them on spot; the rest is launched on demand. NodeLaunchException where AWS gives
        no node, neither on spot nor on demand.
        """
        if MARKET not in node_config:
            return super()._create_node(node_config, tags, count)
        made: dict[str, Any] = {}
        why = "AWS gave fewer nodes than requested"
        try:
            made = super()._create_node(node_config, tags, count)
        except NodeLaunchException as refused:
            if refused.category not in NO_SPOT:
                raise
            why = f"{refused.category}: {refused.description}"
        missing = count - len(made)
        if missing <= 0:
            return made
        logger.warning("no spot capacity for %d of %d nodes: %s; launching on demand", missing, count, why)
        on_demand = {key: value for key, value in node_config.items() if key != MARKET}
        try:
            return made | super()._create_node(on_demand, tags, missing)
        except NodeLaunchException:
            if not made:
                raise
            logger.warning("none on demand either; continuing with %d of %d nodes", len(made), count, exc_info=True)
            return made
