"""`make demo`: the whole path for real on one machine, from making data to a day of decisions computed again.

Every step uses the same library as the command of its name; nothing here is a stand-in.
"""
