"""German beers, one for each day of the month."""

from __future__ import annotations

from datetime import date
from typing import Final

BEERS: Final = (
    ("Helles", "Munich"),
    ("Kölsch", "Cologne"),
    ("Altbier", "Düsseldorf"),
    ("Rauchbier", "Bamberg"),
    ("Gose", "Leipzig"),
    ("Berliner Weisse", "Berlin"),
    ("Hefeweizen", "Erding"),
    ("Schwarzbier", "Bad Köstritz"),
    ("Pilsner", "Jever"),
    ("Export", "Dortmund"),
    ("Maibock", "Einbeck"),
    ("Doppelbock", "Andechs"),
    ("Eisbock", "Kulmbach"),
    ("Dampfbier", "Zwiesel"),
    ("Zoigl", "Windischeschenbach"),
    ("Kellerbier", "Forchheim"),
    ("Ungespundetes", "Bamberg"),
    ("Märzen", "Munich"),
    ("Festbier", "Munich"),
    ("Dunkles", "Kulmbach"),
    ("Dunkelweizen", "Erding"),
    ("Kristallweizen", "Freising"),
    ("Weizenbock", "Kelheim"),
    ("Roggenbier", "Regensburg"),
    ("Lichtenhainer", "Jena"),
    ("Zwickelbier", "Heidelberg"),
    ("Landbier", "Aufseß"),
    ("Rotbier", "Nuremberg"),
    ("Braunschweiger Mumme", "Brunswick"),
    ("Kottbusser", "Cottbus"),
    ("Pinkus Alt", "Münster"),
)
"""Style, and a town known for it."""


def beer_of_the_day(day: date) -> str:
    """Return the beer of ``day`` with its town. The same day always gives the same beer."""
    style, town = BEERS[day.toordinal() % len(BEERS)]
    return f"{style} ({town})"
