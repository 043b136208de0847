"""Rehearsal: the requests that Ray sends to the clouds for gpu.yaml, gcp.yaml and azure.yaml, up to the launch.

Ray's own bootstrap and node providers run with the clouds' own libraries. Amazon's library talks to moto's AWS.
Google's library builds and validates its requests from the API's published description, which it contains, and the test
answers instead of the network. Azure's library talks to an imitation of its API on loopback. An unknown request fails
the test.
"""

import json
import os
import re
import threading
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from multiprocessing import get_context
from pathlib import Path
from types import SimpleNamespace

import boto3
import pytest
import yaml
from moto import mock_aws
from ray.autoscaler._private.providers import _get_node_provider, _get_node_provider_cls
from ray.autoscaler._private.util import prepare_config
from ray.autoscaler.node_launch_exception import NodeLaunchException
from ray.autoscaler.tags import (
    NODE_KIND_HEAD,
    NODE_KIND_WORKER,
    TAG_RAY_LAUNCH_CONFIG,
    TAG_RAY_NODE_KIND,
    TAG_RAY_NODE_NAME,
    TAG_RAY_NODE_STATUS,
    TAG_RAY_USER_NODE_TYPE,
)

pytestmark = pytest.mark.cluster
FILES = Path(__file__).parent.parent.parent / "cluster"


@pytest.fixture
def read(tmp_path, monkeypatch):
    """A filled-in cluster file as `ray up` prepares it; Ray's keys go to this test's own home."""
    monkeypatch.setenv("HOME", str(tmp_path))

    def read(name):
        text = (FILES / name).read_text().replace("YOUR-", "my-").replace("my-PROJECT", "my-project")
        return prepare_config(yaml.safe_load(text))

    return read


def launch(provider, config, *names, count=1):
    """Start nodes of each type, or of those named, as the launcher starts the head and the autoscaler the workers."""
    for name in names or config["available_node_types"]:
        kind = config["available_node_types"][name]
        head = name == config["head_node_type"]
        tags = {
            TAG_RAY_NODE_KIND: NODE_KIND_HEAD if head else NODE_KIND_WORKER,
            TAG_RAY_USER_NODE_TYPE: name,
            TAG_RAY_NODE_NAME: f"ray-fracray-{'head' if head else 'worker'}",
            TAG_RAY_LAUNCH_CONFIG: "0" * 40,
            TAG_RAY_NODE_STATUS: "uninitialized",
        }
        before = config.get("head_node", {}) if head else {}  # the launcher merges the node type's settings into these
        provider.create_node({**before, **kind["node_config"]}, tags, count)


# ---------------------------------------------------------------- AWS


def test_the_nodes_of_gpu_yaml_are_launched_on_aws(tmp_path):
    """In a separate process: moto's AWS in this one would empty the object store of other tests."""
    with ProcessPoolExecutor(1, get_context("spawn")) as alone:
        alone.submit(launch_on_aws, tmp_path).result()


def launch_on_aws(home):
    os.environ.update(AWS_ACCESS_KEY_ID="none", AWS_SECRET_ACCESS_KEY="none", HOME=str(home))
    text = (FILES / "gpu.yaml").read_text().replace("YOUR-", "my-")
    region = yaml.safe_load(text)["provider"]["region"]
    with mock_aws():
        ec2, iam = boto3.client("ec2", region), boto3.client("iam")
        vpc = ec2.describe_vpcs()["Vpcs"][0]["VpcId"]
        group = ec2.create_security_group(GroupName="mine", Description="mine", VpcId=vpc)["GroupId"]
        image = ec2.describe_images()["Images"][0]["ImageId"]
        for profile in ("my-HEAD-PROFILE", "my-WORKER-PROFILE"):
            iam.create_instance_profile(InstanceProfileName=profile)
        text = text.replace("sg-my-GROUP", group).replace("ami-my-DEEP-LEARNING-BASE-AMI", image)
        roles, groups = len(iam.list_roles()["Roles"]), len(ec2.describe_security_groups()["SecurityGroups"])
        config = prepare_config(yaml.safe_load(text))
        config = _get_node_provider_cls(config["provider"]).bootstrap_config(config)
        provider = _get_node_provider(config["provider"], config["cluster_name"], use_cache=False)
        launch(provider, config)
        assert machines(ec2) == {
            "head": ("m6i.xlarge", "my-HEAD-PROFILE", group, False),
            "gpu": ("g5.2xlarge", "my-WORKER-PROFILE", group, True),
            "cpu": ("m6i.2xlarge", "my-WORKER-PROFILE", group, True),
        }
        for volume in ec2.describe_volumes()["Volumes"]:
            assert (volume["Size"], volume["VolumeType"], volume["Encrypted"]) == (100, "gp3", True)
        without_spot(provider, config, ec2)
        # Ray created no role, and no group whose SSH port is open to the world.
        assert len(iam.list_roles()["Roles"]) == roles
        made = ec2.describe_security_groups()["SecurityGroups"]
        assert len(made) == groups
        assert "0.0.0.0/0" not in str([one["IpPermissions"] for one in made])


def machines(ec2):
    """The running machines, {type of node: (type of machine, profile, security group, whether on spot)}."""
    found = {}
    for machine in running(ec2):
        (name,) = [tag["Value"] for tag in machine["Tags"] if tag["Key"] == TAG_RAY_USER_NODE_TYPE]
        profile = machine["IamInstanceProfile"]["Arn"].rpartition("/")[2]
        (group,) = [given["GroupId"] for given in machine["SecurityGroups"]]
        assert name not in found
        found[name] = (machine["InstanceType"], profile, group, is_spot(machine))
    return found


def running(ec2):
    reply = ec2.describe_instances(Filters=[{"Name": "instance-state-name", "Values": ["running"]}])
    return [machine for reservation in reply["Reservations"] for machine in reservation["Instances"]]


def is_spot(machine):
    return machine.get("InstanceLifecycle") == "spot"


def without_spot(provider, config, ec2):
    """AWS has no spot capacity in any zone: workers are launched on demand. Without that too, it is an error."""
    before = machines(ec2)
    ec2.terminate_instances(InstanceIds=provider.non_terminated_nodes({}))
    asked, has_on_demand, code = [], True, "InsufficientInstanceCapacity"

    def answer(params, **_):
        spot = params["body"].get("InstanceMarketOptions.MarketType") == "spot"
        asked.append((spot, params["body"]["SubnetId"]))
        if has_on_demand and not spot:
            return None  # moto's turn
        error = {"Code": code, "Message": "There is no capacity."}
        return SimpleNamespace(status_code=500), {"Error": error}

    events = provider.ec2_fail_fast.meta.client.meta.events
    events.register_first("before-call.ec2.RunInstances", answer)
    launch(provider, config, "gpu", "cpu")
    assert machines(ec2) == {name: (*before[name][:3], False) for name in ("gpu", "cpu")}
    zones = len(config["provider"]["availability_zone"].split(","))
    spots, rest = ([zone for spot, zone in asked if spot == kind] for kind in (True, False))
    assert len(set(spots)) == zones == 3
    assert len(rest) == 2

    # A throttled request is not a lack of capacity: on demand costs more, and spot may work a little later.
    asked.clear()
    code = "RequestLimitExceeded"
    with pytest.raises(NodeLaunchException) as refused:
        launch(provider, config, "gpu")
    assert refused.value.category == code
    assert all(spot for spot, _ in asked)

    asked.clear()
    code, has_on_demand = "InsufficientInstanceCapacity", False
    with pytest.raises(NodeLaunchException, match="no capacity") as refused:
        launch(provider, config, "gpu")
    assert refused.value.category == "InsufficientInstanceCapacity"
    with pytest.raises(NodeLaunchException, match="no capacity"):
        launch(provider, config, "head")
    assert len({zone for spot, zone in asked if not spot}) == zones

    # AWS gives one of three on spot: the other two come on demand; if there are none, the one is kept.
    events.unregister("before-call.ec2.RunInstances", answer)

    def some(params, **_):
        # moto launches MinCount machines.
        if params["body"].get("InstanceMarketOptions.MarketType") == "spot":
            return None
        params["body"]["MinCount"] = params["body"]["MaxCount"]
        return answer(params)

    events.register_first("before-call.ec2.RunInstances", some)
    for made in ([True, False, False], [True]):
        has_on_demand = len(made) > 1
        ec2.terminate_instances(InstanceIds=provider.non_terminated_nodes({}))
        launch(provider, config, "gpu", count=3)
        assert sorted(map(is_spot, running(ec2)), reverse=True) == made


# ---------------------------------------------------------------- Google Cloud

ACCOUNT = "ray-autoscaler-sa-v1@my-project.iam.gserviceaccount.com"
GOOGLE = {
    "cloudresourcemanager.projects.get": {"projectId": "my-project", "lifecycleState": "ACTIVE"},
    "iam.projects.serviceAccounts.get": {"email": ACCOUNT, "projectId": "my-project"},
    "cloudresourcemanager.projects.getIamPolicy": {"bindings": []},
    "cloudresourcemanager.projects.setIamPolicy": {},
    "compute.projects.get": {"name": "my-project", "commonInstanceMetadata": {}},
    "compute.projects.setCommonInstanceMetadata": {"name": "operation"},
    "compute.globalOperations.get": {"status": "DONE"},
    "compute.instances.insert": {"name": "operation"},
    "compute.zoneOperations.get": {"status": "DONE"},
}


@pytest.fixture
def google(read, monkeypatch):
    """The requests for gcp.yaml as (method of the API, URI, body), and the bootstrapped config."""
    import httplib2
    from googleapiclient.http import HttpRequestMock
    from ray.autoscaler._private.gcp import config as gcp
    from ray.autoscaler._private.gcp.node_provider import GCPNodeProvider

    asked = []

    def answer(http, postproc, uri, method="GET", body=None, headers=None, methodId=None, resumable=None):
        asked.append((methodId, uri, json.loads(body) if body else None))
        return HttpRequestMock(httplib2.Response({"status": 200}), json.dumps(GOOGLE[methodId]).encode(), postproc)

    monkeypatch.setattr(gcp, "build_request", answer)
    config = read("gcp.yaml")
    config["provider"]["gcp_credentials"] = {"type": "credentials_token", "credentials": "none"}
    config = gcp.bootstrap_gcp(config)
    launch(GCPNodeProvider(config["provider"], config["cluster_name"]), config)
    return asked, config


def test_the_nodes_of_gcp_yaml_are_requested_from_google(google):
    asked, _ = google
    made = [(uri, body) for method, uri, body in asked if method == "compute.instances.insert"]
    assert all("/projects/my-project/zones/us-central1-a/instances" in uri for uri, _ in made)
    machines = {body["labels"][TAG_RAY_USER_NODE_TYPE]: body for _, body in made}
    assert {name: body["machineType"].rpartition("/")[2] for name, body in machines.items()} == {
        "head": "e2-standard-4",
        "gpu_spot": "g2-standard-8",
        "gpu_on_demand": "g2-standard-8",
        "cpu": "e2-standard-8",
    }
    spot = {name for name, body in machines.items() if body.get("scheduling", {}).get("provisioningModel") == "SPOT"}
    assert spot == {"gpu_spot", "cpu"}
    for name, body in machines.items():
        if name in spot:  # deleted and not stopped: a stopped machine keeps its disk
            assert body["scheduling"]["instanceTerminationAction"] == "DELETE"
        (disk,) = body["disks"]
        assert (disk["boot"], disk["autoDelete"], disk["initializeParams"]["diskSizeGb"]) == (True, True, 100)
        assert "/global/images/my-IMAGE" in disk["initializeParams"]["sourceImage"]
        (interface,) = body["networkInterfaces"]
        assert interface["subnetwork"].endswith("/subnetworks/my-SUBNET")
        assert interface["accessConfigs"] == [{"name": "External NAT", "type": "ONE_TO_ONE_NAT"}]  # as the file says
        (account,) = body["serviceAccounts"]
        mine = "my-HEAD-ACCOUNT" if name == "head" else "my-WORKER-ACCOUNT"
        assert account["email"] == f"{mine}@my-project.iam.gserviceaccount.com"
        assert not body.get("canIpForward")
        assert all(re.fullmatch(r"[a-z][\w-]{0,62}", key) for key in body["labels"])
        assert all(re.fullmatch(r"[a-z0-9_-]{0,63}", value) for value in body["labels"].values())


def test_every_setting_of_the_machines_is_in_googles_schema(google):
    from googleapiclient.discovery_cache import get_static_doc

    schemas = json.loads(get_static_doc("compute", "v1"))["schemas"]
    asked, _ = google
    machines = [body for method, _, body in asked if method == "compute.instances.insert"]
    assert len(machines) == 4
    for body in machines:
        check_schema(body, {"$ref": "Instance"}, schemas, "instance")
    wrong = {**body, "scheduling": {"provisioningModel": "SPOTTY"}}
    with pytest.raises(AssertionError, match="SPOTTY"):
        check_schema(wrong, {"$ref": "Instance"}, schemas, "instance")
    with pytest.raises(AssertionError, match="machineTypo"):
        check_schema({**body, "machineTypo": "x"}, {"$ref": "Instance"}, schemas, "instance")


def check_schema(value, schema, schemas, place):
    """Every key is in the schema, every value has its type and, for an enum, is one of its values."""
    schema = schemas[schema["$ref"]] if "$ref" in schema else schema
    kind = schema.get("type", "object")
    if kind == "object":
        assert isinstance(value, dict), place
        for key, inner in value.items():
            described = schema.get("properties", {}).get(key) or schema.get("additionalProperties")
            assert described, f"{place}.{key}"
            check_schema(inner, described, schemas, f"{place}.{key}")
    elif kind == "array":
        assert isinstance(value, list), place
        for at, inner in enumerate(value):
            check_schema(inner, schema["items"], schemas, f"{place}[{at}]")
    elif kind == "string":
        # Integers of 64 bits are strings; numbers are accepted too.
        assert isinstance(value, str) or (schema.get("format") == "int64" and isinstance(value, int)), place
        assert value in schema.get("enum", [value]), f"{place}: {value}"
    else:
        assert isinstance(value, {"boolean": bool, "integer": int, "number": int | float}[kind]), place


def test_ray_creates_its_own_account_and_opens_no_firewall(google):
    """As cluster/README.md says of Google Cloud: Ray creates an account with wide rights, and no machine uses it."""
    asked, config = google
    methods = [method for method, _, _ in asked]
    assert set(methods) == set(GOOGLE)  # none of them of a firewall, network or address
    (policy,) = [body for method, _, body in asked if method.endswith("setIamPolicy")]
    assert {binding["role"] for binding in policy["policy"]["bindings"]} == {
        "roles/storage.objectAdmin",
        "roles/compute.admin",
        "roles/iam.serviceAccountUser",
        "roles/iam.roleViewer",
    }
    assert ACCOUNT not in str([body for method, _, body in asked if method.endswith("insert")])
    (keys,) = [body for method, _, body in asked if method.endswith("setCommonInstanceMetadata")]
    assert [item["key"] for item in keys["items"]] == ["ssh-keys"]
    assert keys["items"][0]["value"].startswith("ubuntu:ssh-rsa ")
    assert Path(config["auth"]["ssh_private_key"]).stat().st_mode & 0o077 == 0


# ---------------------------------------------------------------- Azure

GROUP = "/subscriptions/my-SUBSCRIPTION/resourceGroups/my-CLUSTER-GROUP"
NETWORK = f"{GROUP}/providers/Microsoft.Network/virtualNetworks/ray-fracray-0001-vnet"
IDENTITY = "/subscriptions/my-SUBSCRIPTION/resourceGroups/my-KEEP-GROUP/providers/Microsoft.ManagedIdentity/x"
NAT = {"id": "/subscriptions/my-SUBSCRIPTION/resourceGroups/my-KEEP-GROUP/providers/Microsoft.Network/natGateways/out"}
SIZES = ("Standard_D4s_v5", "Standard_NC8as_T4_v3", "Standard_D8s_v5")
DONE = {"provisioningState": "Succeeded"}
OUTPUTS = {"msi": {"value": IDENTITY}, "nsg": {"value": "the-nsg"}, "subnet": {"value": "the-subnet"}}
# The resources before `ray up`, as cluster/README.md creates them: the network with its NAT gateway.
AZURE = {
    r"PUT .*/resourcegroups/my-CLUSTER-GROUP": {"id": GROUP, "location": "westus2", "properties": DONE},
    r"GET .*/resourceGroups/my-CLUSTER-GROUP/resources": {"value": [{"id": NETWORK}]},
    r"GET .*/providers/Microsoft\.Network": {
        "resourceTypes": [{"resourceType": "virtualNetworks", "apiVersions": ["2024-10-01"]}]
    },
    f"GET {NETWORK}": {
        "id": NETWORK,
        "properties": {"subnets": [{"properties": {"addressPrefix": "10.77.0.0/16", "natGateway": NAT}}]},
    },
    r"PUT .*/deployments/[\w-]+": {"id": "deployment", "properties": {**DONE, "outputs": OUTPUTS}},
    r"GET .*/providers/Microsoft\.Compute/skus": {
        "value": [{"name": size, "locationInfo": [{"location": "westus2", "zones": ["1", "2"]}]} for size in SIZES]
    },
}


@contextmanager
def azure_api():
    """An imitation of Azure's API on loopback: its URL, and the requests as (method, path, body)."""
    asked = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            path = self.path.partition("?")[0]
            asked.append((self.command, path, json.loads(body) if body else None))
            known = [reply for route, reply in AZURE.items() if re.fullmatch(route, f"{self.command} {path}", re.I)]
            text = json.dumps(known[0] if known else {"error": {"code": "Unknown", "message": path}}).encode()
            self.send_response(200 if known else 404)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text)

        do_PUT = do_POST = do_DELETE = do_HEAD = do_PATCH = do_GET  # noqa: N815

        def log_message(self, *args):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}", asked
    server.shutdown()
    server.server_close()
    thread.join(10)


@pytest.fixture
def azure(read, monkeypatch):
    """The deployments that azure.yaml requests, by name."""
    from azure.core.pipeline.policies import SansIOHTTPPolicy
    from ray.autoscaler._private._azure import config as bootstrap
    from ray.autoscaler._private._azure import node_provider as provider

    config = read("azure.yaml")
    with azure_api() as (url, asked):
        # Without a token: the clients refuse to send one over plain HTTP.
        here = {"base_url": url, "authentication_policy": SansIOHTTPPolicy(), "retry_total": 0}
        for module, names in (
            (bootstrap, ["ResourceManagementClient"]),
            (provider, ["ResourceManagementClient", "ComputeManagementClient", "NetworkManagementClient"]),
        ):
            for name in names:
                monkeypatch.setattr(module, name, partial(getattr(module, name), **here))
        # It would contact every cloud's metadata service.
        monkeypatch.setattr(provider, "get_cloud_from_metadata_requests", lambda: "unknown")
        config = bootstrap.bootstrap_azure(config)
        launch(provider.AzureNodeProvider(config["provider"], config["cluster_name"]), config)
    unknown = [
        (method, path) for method, path, _ in asked if not any(re.fullmatch(r, f"{method} {path}", re.I) for r in AZURE)
    ]
    assert unknown == []
    return {
        path.rpartition("/")[2]: body["properties"]
        for method, path, body in asked
        if method == "PUT" and body.get("properties")
    }


def values(deployment):
    """The parameters of a deployment with the defaults; Azure refuses unknown or missing ones."""
    declared = deployment["template"]["parameters"]
    given = {name: value["value"] for name, value in deployment["parameters"].items()}
    assert set(given) <= set(declared)
    assert {name for name, about in declared.items() if "defaultValue" not in about} <= set(given)
    types = {"string": str, "securestring": str, "int": int, "bool": bool, "object": dict, "array": list}
    for name, value in given.items():
        assert isinstance(value, types[declared[name]["type"]]), name
    return {name: about["defaultValue"] for name, about in declared.items() if "defaultValue" in about} | given


def resources(deployment):
    """The types of the resources that a deployment creates, with the conditions of Ray's templates."""
    given = values(deployment)
    made = []
    for resource in deployment["template"]["resources"]:
        found = re.fullmatch(r"\[(not\()?parameters\('(\w+)'\)\)?\]", resource.get("condition", ""))
        assert found or "condition" not in resource
        if found is None or bool(given[found[2]]) != bool(found[1]):
            made.append(resource["type"])
    return made


def test_the_nodes_of_azure_yaml_are_requested_from_azure(azure):
    machines = {
        values(one)["vmTags"][TAG_RAY_USER_NODE_TYPE]: one for name, one in azure.items() if name != "ray-config"
    }
    requested = {name: values(one) for name, one in machines.items()}
    assert {name: (one["vmSize"], one["priority"]) for name, one in requested.items()} == {
        "head": ("Standard_D4s_v5", "Regular"),
        "gpu_spot": ("Standard_NC8as_T4_v3", "Spot"),
        "gpu_on_demand": ("Standard_NC8as_T4_v3", "Regular"),
        "cpu": ("Standard_D8s_v5", "Spot"),
    }
    for name, one in requested.items():
        assert one["osDiskSize"] == 128
        assert (one["imagePublisher"], one["imageOffer"], one["imageSku"]) == ("microsoft-dsvm", "ubuntu-hpc", "2204")
        assert one["imageVersion"] == "my-IMAGE-VERSION"
        assert (one["msi"], one["nsg"], one["subnet"]) == (IDENTITY, "the-nsg", "the-subnet")
        assert one["vmCount"] == 1
        assert one["adminUsername"] == "ubuntu"
        assert one["publicKey"].startswith("ssh-rsa ")
        if one["priority"] == "Spot":  # deleted and not stopped: a stopped machine keeps its disk
            assert (one["evictionPolicy"], one["billingProfile"]) == ("Delete", {"maxPrice": -1})
        # No public address, so that the open port 22 of Ray's security group cannot be reached from the internet.
        assert sorted(resources(machines[name])) == [
            "Microsoft.Compute/virtualMachines",
            "Microsoft.Network/networkInterfaces",
        ]


def test_azures_network_keeps_its_gateway_and_lets_in_only_ssh(azure):
    base = azure["ray-config"]
    assert sorted(resources(base)) == [
        "Microsoft.Authorization/roleAssignments",
        "Microsoft.Network/networkSecurityGroups",
        "Microsoft.Network/virtualNetworks",
    ]  # and no identity: azure.yaml names one that `ray down` does not delete
    given = values(base)
    assert (given["clusterId"], given["subnet"]) == ("fracray-0001", "10.77.0.0/16")
    assert (given["msiName"], given["msiResourceGroup"]) == ("my-IDENTITY", "my-KEEP-GROUP")
    by_type = {resource["type"].rpartition("/")[2]: resource for resource in base["template"]["resources"]}
    (subnet,) = by_type["virtualNetworks"]["properties"]["subnets"]
    assert subnet["properties"]["natGateway"] == NAT
    (rule,) = by_type["networkSecurityGroups"]["properties"]["securityRules"]
    assert (rule["properties"]["destinationPortRange"], rule["properties"]["access"]) == ("22", "Allow")
