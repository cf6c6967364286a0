"""Beer of the day: the whole product on one machine, live and checking itself.

``play`` runs the acts, ``story`` says what each act applies and what must then be true, ``stage`` builds the network
and starts the agents, ``tap`` and ``guests`` are the pods, ``ledger`` remembers what happened, ``screen`` shows it.
"""
