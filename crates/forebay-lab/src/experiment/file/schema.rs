//! The keys of an `experiment.toml`, by section.

use forebay_core::toml_reader::{Key, Schema, Section};

/// The file itself.
pub(super) const ROOT: Section = Section {
    name: "",
    head: "an experiment",
    form: "sections and their keys",
    about: "",
    keys: &Key::all_named([
        "name",
        "model",
        "out",
        "starts",
        "blocks",
        "together",
        "time_scale",
        "record",
        "env",
        "load",
        "slo",
        "servers",
        "arms",
    ]),
    later: &[],
};
/// `[load]`.
pub(super) const LOAD: Section = Section {
    name: "load",
    head: "[load]",
    form: "[load] and its keys below",
    about: "",
    keys: &Key::all_named([
        "num_prompts",
        "request_rate",
        "max_concurrency",
        "input_len",
        "prefix_repetition",
        "output_len",
        "ignore_eos",
        "endpoint",
        "temperature",
        "seed",
        "sweep",
        "warm_up",
    ]),
    later: &[],
};
/// `sweep` in `[load]`.
pub(super) const SWEEP: Section = Section {
    name: "load.sweep",
    head: "load.sweep",
    form: "sweep = { request_rate = [1, 2, 4] }",
    about: "",
    keys: &Key::all_named(["request_rate", "max_concurrency"]),
    later: &[],
};
/// `prefix_repetition` in `[load]`.
pub(super) const PREFIXES: Section = Section {
    name: "load.prefix_repetition",
    head: "load.prefix_repetition",
    form: "prefix_repetition = { prefix_len = 256, num_prefixes = 10 }",
    about: "",
    keys: &Key::all_named(["prefix_len", "num_prefixes"]),
    later: &[],
};
/// `warm_up` in `[load]`.
pub(super) const WARM_UP: Section = Section {
    name: "load.warm_up",
    head: "load.warm_up",
    form: "warm_up = { num_prompts = 64, output_len = 32 }",
    about: "",
    keys: &Key::all_named(["num_prompts", "output_len"]),
    later: &[],
};
/// `[slo]`.
pub(super) const SLO: Section = Section {
    name: "slo",
    head: "[slo] of an experiment",
    form: "[slo] and its keys below",
    about: "",
    keys: &Key::all_named(["ttft", "tpot", "e2e"]),
    later: &[],
};
/// `[[servers]]`.
pub(super) const SERVER: Section = Section {
    name: "servers",
    head: "[[servers]]",
    form: "[[servers]], once for each server",
    about: "",
    keys: &Key::all_named([
        "name",
        "command",
        "or_else",
        "env",
        "cwd",
        "url",
        "health",
        "start_timeout",
        "stop_timeout",
        "after",
    ]),
    later: &[],
};
/// `[[arms]]`.
pub(super) const ARM: Section = Section {
    name: "arms",
    head: "[[arms]]",
    form: "[[arms]], once for each arm",
    about: "",
    keys: &Key::all_named([
        "name",
        "servers",
        "gpus",
        "price",
        "max_num_seqs",
        "route",
        "policy",
        "stage",
        "starts",
        "blocks",
    ]),
    later: &[],
};

/// The whole file.
pub(super) static SCHEMA: Schema = Schema {
    root: &ROOT,
    sections: &[&ROOT, &LOAD, &SWEEP, &PREFIXES, &WARM_UP, &SLO, &SERVER, &ARM],
    variables: &[],
    needless: |_, _| None,
    instead: |_, _| None,
};
