"""The report of a study: findings read from its folder, drawn as figures, written as one page.

findings   what the study found, its Pareto front
verdict    what it may claim: the winner, or those that are tied
figures, latency, diagram   drawn with plotly: losses against costs and steps; times against
           contexts; the best architecture
entries, seeds, speeds   sections with a table each: everything trained, the final runs over their
           seeds, how fast the finalists are; columns is what they share
page       HTML, style, the sorting of tables
report     the sections, in the order of the page
"""

from archsearch.report.report import write_report

__all__ = ["write_report"]
