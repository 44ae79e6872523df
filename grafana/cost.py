"""What does an answer cost, and what does the cache save?"""

from __future__ import annotations

from grafana import slo
from grafana.boards import Board, Section
from grafana.panels import ENGINE, Panel, Query, at_least, at_most, lines, number

_CURRENCY = "In the currency of POD_COST_PER_HOUR."
_COST = "service:llm_cost:per_million_tokens5m"
_PROMPT = f"sum(rate(llm_prompt_tokens_total{{{ENGINE}}}[$__rate_interval]))"
_CACHED = f"sum(rate(llm_cached_prompt_tokens_total{{{ENGINE}}}[$__rate_interval]))"
_USED = at_least(0.3, 0.05)


def _now() -> Section:
    cost = Panel(
        "Cost of a million tokens", f"Generated ones, over 5 minutes. {_CURRENCY} It falls as pods are busier.", "none", decimals=3
    )
    hour = Panel("Cost of an hour", f"All pods, busy or not. {_CURRENCY}", "none", decimals=2)
    request = Panel("Cost of a thousand requests", f"Over 5 minutes. {_CURRENCY}", "none", decimals=4)
    slots = Panel(
        "Do the paid slots work?",
        "Mean used share over the shown range; what idles costs as much. Yellow below 30 %.",
        "percentunit",
        _USED,
        decimals=0,
    )
    hits = Panel(
        "Prompt tokens from the cache",
        "Share that needed no prefill, over the shown range. A fact: it follows the prompts.",
        "percentunit",
        decimals=0,
    )
    saved = Panel("Saved tokens", "Prompt tokens that needed no prefill, in the shown range.", "short")
    whole = "[$__range]"
    cached = f"sum(increase(llm_cached_prompt_tokens_total{{{ENGINE}}}{whole}))"
    asked = f"sum(increase(llm_prompt_tokens_total{{{ENGINE}}}{whole}))"
    pods = f"sum(llm_pod_cost_per_hour{{{ENGINE}}})"
    return Section(
        "",
        5,
        (
            number(cost, _COST),
            number(hour, pods),
            number(request, f"{pods} / 12 / clamp_min(sum(increase(llm_requests_total{{{ENGINE}}}[5m])) or vector(0), 1) * 1000"),
            number(slots, f"avg_over_time(service:llm_slots:saturation{whole})", instant=True),
            number(hits, f"{cached} / clamp_min({asked}, 1)", instant=True),
            number(saved, cached, instant=True),
        ),
    )


def _cost() -> Section:
    million = Panel(
        "When are tokens dear?", f"Cost of a million generated ones, logarithmic: idle pods make each token dear. {_CURRENCY}", "none"
    )
    slots = Panel(
        "What is paid and idle?",
        f"Share of the slots in use. Above {slo.SLOTS_WARN:.0%} nothing is spare.",
        "percentunit",
        at_most(1, slo.SLOTS_WARN),
    )
    return Section(
        "Cost",
        8,
        (
            lines(million, Query(_COST, "a million tokens"), log=True, colors={"a million tokens": "blue"}),
            lines(slots, Query("service:llm_slots:saturation", "slots in use"), colors={"slots in use": "blue"}),
        ),
    )


def _tokens() -> Section:
    kinds = Panel("Where do tokens go?", "A second: prompts that were computed, prompts from the cache, answers.", "none")
    prompts = Panel("How long are prompts?", "Tokens of one prompt, 5 minutes. A fact.", "none", decimals=0)
    answers = Panel("How long are answers?", "Tokens of one answer, 5 minutes. A fact: each one costs a step.", "none", decimals=0)
    colors = {"prompt, computed": "orange", "prompt, from the cache": "green", "answer": "blue"}
    return Section(
        "Tokens",
        8,
        (
            lines(
                kinds,
                Query(f"clamp_min({_PROMPT} - {_CACHED}, 0)", "prompt, computed"),
                Query(_CACHED, "prompt, from the cache"),
                Query("service:llm_generation_tokens:rate1m", "answer"),
                stack=True,
                colors=colors,
            ),
            lines(prompts, *_sizes("llm_request_prompt_tokens"), colors={"p50": "blue", "p95": "orange"}),
            lines(answers, *_sizes("llm_request_generation_tokens"), colors={"p50": "blue", "p95": "orange"}),
        ),
    )


def _sizes(metric: str) -> list[Query]:
    buckets = f"sum by (le) (rate({metric}_bucket{{{ENGINE}}}[5m]))"
    return [Query(f"histogram_quantile({percent / 100:g}, {buckets})", f"p{percent}") for percent in (50, 95)]


def _cache() -> Section:
    hits = Panel(
        "How much comes from the cache?",
        "Share of prompt tokens that needed no prefill, by pod. A fact: it follows the prompts.",
        "percentunit",
    )
    full = Panel(
        "How full are the KV caches?", "Used share, by pod. A full one holds requests back.", "percentunit", at_most(slo.CACHE_FULL)
    )
    by_pod = "sum by (instance) (rate({}{{" + ENGINE + "}}[5m]))"
    cached, asked = by_pod.format("llm_cached_prompt_tokens_total"), by_pod.format("llm_prompt_tokens_total")
    return Section(
        "Cache",
        8,
        (
            lines(hits, Query(f"{cached} / clamp_min({asked}, 1e-9)", "{{instance}}")),
            lines(full, Query(f"llm_kv_cache_usage_ratio{{{ENGINE}}}", "{{instance}}")),
        ),
    )


def make() -> Board:
    """The dashboard."""
    question = "What does an answer cost, and what does the cache save?"
    return Board("cost", "Convoy · Cost and cache", question, (_now(), _cost(), _tokens(), _cache()))
