"""The reason of a failed command of Ray's, found in the output of Ray and SSH; and the dashboard's port."""

import pytest

from fracray.cluster.files import read_cluster
from fracray.cluster.ray_cli import dashboard_port, failure_reason

ALWAYS = """Loaded cached provider configuration
If you experience issues with the cloud provider, try re-running the command with --no-config-cache.
2026-11-23 20:00:00,000\tINFO node_provider.py:54 -- ClusterState: Loaded cluster state: ['10.0.0.5']
Fetched IP: 10.0.0.5
"""
FAILED = "Error: Command failed:\n\n  ssh -tt -i key -o ProxyCommand=none me@10.0.0.5 bash --login -c -i 'true'\n\n"


@pytest.mark.parametrize(
    ("output", "reason"),
    [
        ("ssh: connect to host 10.0.0.5 port 22: Connection refused\r\n", "ssh: connect to host 10.0.0.5 port 22: "),
        ("me@10.0.0.5: Permission denied (publickey).\r\n", "me@10.0.0.5: Permission denied (publickey)."),
        (
            "bash: cd: /x: No such file or directory\r\nShared connection to 10.0.0.5 closed.\r\n",
            "bash: cd: /x: No such",
        ),
        ("", ""),
    ],
)
def test_the_reason_of_a_failure_is_found_in_the_output(output, reason):
    found = failure_reason(ALWAYS + output + FAILED)
    assert found.startswith(reason)
    assert bool(found) == bool(reason)


@pytest.mark.parametrize(
    ("options", "port"), [("", 8265), (" --dashboard-port=8300", 8300), (" --dashboard-port 8300", 8300)]
)
def test_the_port_of_the_dashboard_is_read_from_the_start_command(tmp_path, options, port):
    file = tmp_path / "cluster.yaml"
    file.write_text(f"provider: {{type: local, head_ip: h}}\nhead_start_ray_commands: ['ray start --head{options}']\n")
    assert dashboard_port(read_cluster(file)) == port
