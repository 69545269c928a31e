"""What the tests on a cluster are made of; needs kubectl, helm and docker on PATH, and a cluster (see `cluster`)."""
