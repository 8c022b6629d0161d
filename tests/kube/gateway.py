"""A real Envoy whose endpoint picker is the Forebay of the test, by the configuration that is shipped. The servers of its cluster are all that
pods of the test may ever be: the picker says which of them gets a request, and Envoy takes only those that it knows.
"""
import os, subprocess

SHIPPED = os.path.join(os.path.dirname(os.path.abspath(__file__)), "../../config/gateway/envoy.yaml")
HOSTS, PORTS = range(1, 5), (8000, 8001)


def start(program):
    with open(SHIPPED) as file:
        lines = file.read().split("\n")
    servers = [number for number, line in enumerate(lines) if "port_value: 8001" in line or "port_value: 8002" in line]
    pattern = "        - endpoint: {{ address: {{ socket_address: {{ address: 10.244.0.{}, port_value: {} }} }} }}"
    lines[servers[0]:servers[-1] + 1] = [pattern.format(host, port) for host in HOSTS for port in PORTS]
    with open("envoy.yaml", "w") as file:
        file.write("\n".join(lines))
    arguments = ["-c", "envoy.yaml", "--concurrency", "1", "--use-dynamic-base-id", "--log-level", "warning", "--log-path", "envoy.log"]
    return subprocess.Popen([program, *arguments], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
