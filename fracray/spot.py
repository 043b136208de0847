"""Ray's launcher of AWS' machines, which takes one on demand where AWS has no spot machine to give.

Ray itself would ask for the same spot machine again and again: a refused launch does not make it turn to another type
of node (ray/autoscaler/v2/instance_manager/subscribers/cloud_resource_monitor.py looks at time-outs only).

cluster/gpu.yaml names this class as its provider's `module`. `ray up` imports it on the laptop, the autoscaler on the
head; nothing else in fracray does, for it needs boto3.
"""

import logging
from typing import Any

from ray.autoscaler._private.aws.node_provider import AWSNodeProvider
from ray.autoscaler.node_launch_exception import NodeLaunchException

MARKET = "InstanceMarketOptions"  # how a node_config asks for spot; without it, AWS launches on demand

logger = logging.getLogger(__name__)


class SpotFirst(AWSNodeProvider):
    """Launches what a node type's `node_config` asks for, and on demand if that was spot and AWS refused it."""

    def _create_node(self, node_config: dict[str, Any], tags: dict[str, str], count: int) -> dict[str, Any]:
        """Launch up to `count` machines, {id: instance}; each launch asks for spot first, in every zone of the file.

        NodeLaunchException where AWS does not give them on demand either: what is wrong with the settings themselves
        (rights, quotas, the image) is told by that second answer as it would be by the first.
        """
        try:
            return super()._create_node(node_config, tags, count)
        except NodeLaunchException as refused:
            if MARKET not in node_config:
                raise
            logger.warning("no spot machine (%s): %s; launching on demand", refused.category, refused.description)
            on_demand = {key: value for key, value in node_config.items() if key != MARKET}
            return super()._create_node(on_demand, tags, count)
