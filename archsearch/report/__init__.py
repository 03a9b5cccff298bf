"""The report of a study: findings read from its folder, drawn as figures, written as one page.

findings   what the study found, its verdict, its Pareto front
figures, diagram   drawn with plotly: losses against costs and steps; the best architecture
page       HTML, style, the sorting of tables
report     the sections, in the order of the page
"""

from archsearch.report.report import write_report

__all__ = ["write_report"]
