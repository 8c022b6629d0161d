//! The line that starts a server of a plan. Pure: text comes out.

use std::collections::BTreeMap;

use serde::Serialize;

use super::host::{Host, Vendor};
use super::layout::LayoutServer;
use super::memory::ServingLoad;

/// The line that starts a server: variables of its environment, and its command.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct LaunchLine {
    /// Name and value.
    pub environment: BTreeMap<&'static str, String>,
    /// The program and its arguments.
    pub command: Vec<String>,
}

impl LaunchLine {
    /// One line for a shell.
    #[must_use]
    pub fn line(&self) -> String {
        let mut line = String::new();
        for (name, value) in &self.environment {
            line.push_str(&format!("{name}={} ", quoted(value)));
        }
        line + &self.command.iter().map(|word| quoted(word)).collect::<Vec<_>>().join(" ")
    }
}

/// A word as a POSIX shell takes it.
#[must_use]
pub fn quoted(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./:=,@%+".contains(c);
    if !word.is_empty() && word.chars().all(plain) {
        word.to_owned()
    } else {
        format!("'{}'", word.replace('\'', "'\\''"))
    }
}

/// Returns the line that starts a `server` of the model `name`.
#[must_use]
pub fn launch(host: &Host, server: &LayoutServer, name: &str, load: &ServingLoad, context: Option<u64>) -> LaunchLine {
    let gpus: Vec<String> = server.gpus.iter().map(usize::to_string).collect();
    let mut environment = BTreeMap::from([(host.vendor.variable(), gpus.join(","))]);
    if host.vendor == Vendor::Nvidia && host.is_mixed() {
        // CUDA's own order is the fastest first, nvidia-smi's is by slot; they differ where the kinds do.
        environment.insert("CUDA_DEVICE_ORDER", "PCI_BUS_ID".to_owned());
    }
    let mut command = Vec::new();
    if let Some(node) = server.bind(host) {
        command.extend(["numactl".to_owned(), format!("--cpunodebind={node}"), format!("--membind={node}")]);
    }
    command.extend(["vllm", "serve", name].map(str::to_owned));
    let mut flag = |flag: &str, value: String| command.extend([flag.to_owned(), value]);
    flag("--port", server.port.to_string());
    flag("--tensor-parallel-size", server.gpus.len().to_string());
    flag("--gpu-memory-utilization", load.utilization.to_string());
    if let Some(context) = context {
        flag("--max-model-len", context.to_string());
    }
    if let Some(dtype) = &load.dtype {
        flag("--dtype", dtype.clone());
    }
    if let Some(dtype) = &load.kv_cache_dtype {
        flag("--kv-cache-dtype", dtype.clone());
    }
    LaunchLine { environment, command }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_word_with_a_space_or_a_quote_is_quoted() {
        assert_eq!(["a/b-1.5", "a b", "it's", ""].map(quoted), ["a/b-1.5", "'a b'", "'it'\\''s'", "''"]);
    }
}
