"""TorchServe as Trine runs it: one handler, its settings, and the registrar that loads releases. See README.md."""

from pathlib import Path

#: What every release of a tabular model carries.
HANDLER = Path(__file__).with_name("handler.py")
#: Settings and log configuration of every TorchServe that Trine starts, in a container or on one machine.
CONFIG = Path(__file__).with_name("config.properties")
LOG_CONFIG = Path(__file__).with_name("log4j2.xml")
