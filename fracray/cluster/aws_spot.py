"""Ray's launcher of AWS' machines, which takes one on demand where AWS has no spot machine to give.

Ray itself would ask for the same spot machine again and again: a refused launch does not make it turn to another type
of node (ray/autoscaler/v2/instance_manager/subscribers/cloud_resource_monitor.py looks at time-outs only).

cluster/gpu.yaml names this class as its provider's `module`. `ray up` imports it on the laptop, the autoscaler on the
head; nothing else in fracray does, for it needs boto3.
"""

import logging
from typing import Any

from ray.autoscaler.node_launch_exception import NodeLaunchException

try:
    from ray.autoscaler._private.aws.node_provider import AWSNodeProvider
except ImportError as error:
    raise ImportError(f"AWS: {error}; pip install --require-hashes -r cluster/aws.lock") from error

MARKET = "InstanceMarketOptions"  # how a node_config asks for spot; without it, AWS launches on demand
# AWS' answers where it has no spot machine of this kind to give, or none more to this account. Whatever else it refuses
# (rights, the image, too many requests at once) it would refuse on demand as well, or give a little later.
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
    """Launches what a node type's `node_config` asks for, and on demand what AWS did not give of it on spot."""

    def _create_node(self, node_config: dict[str, Any], tags: dict[str, str], count: int) -> dict[str, Any]:
        """Launch up to `count` machines, {id: instance}; each launch asks for spot first, in every zone of the file.

        Of several machines AWS may give some on spot; the rest then comes on demand. NodeLaunchException where it gives
        none, neither way.
        """
        if MARKET not in node_config:
            return super()._create_node(node_config, tags, count)
        made: dict[str, Any] = {}
        why = "it gave fewer than were asked for"
        try:
            made = super()._create_node(node_config, tags, count)
        except NodeLaunchException as refused:
            if refused.category not in NO_SPOT:
                raise
            why = f"{refused.category}: {refused.description}"
        missing = count - len(made)
        if missing <= 0:
            return made
        logger.warning("no spot machine for %d of %d: %s; launching on demand", missing, count, why)
        on_demand = {key: value for key, value in node_config.items() if key != MARKET}
        try:
            return made | super()._create_node(on_demand, tags, missing)
        except NodeLaunchException:
            if not made:
                raise
            logger.warning("none on demand either; going on with %d of %d", len(made), count, exc_info=True)
            return made
