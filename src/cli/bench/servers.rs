//! Which servers answer a load: the model that they list, those whose `/metrics` are looked at, and which start of them a run had.

use std::collections::BTreeSet;

use forebay_lab::load::client::{Client, Target};
use forebay_lab::load::sampler::{self, Scraped};
use forebay_lab::rows::row_file::RunRows;

use super::Args;

/// Notes which start of the servers a run had, where they say it: those that answers name, or those that are looked at.
pub(super) async fn told_start(args: &Args, rows: &mut RunRows, scrape: &[Scraped]) {
    let Some(head) = rows.head.as_mut().filter(|head| head.start.is_none() && !args.no_scrape) else { return };
    let named: BTreeSet<&str> = rows.records.iter().filter_map(|record| record.backend.as_deref()).collect();
    let servers: Vec<Scraped> = match args.scrape.is_empty() && !named.is_empty() {
        true => named.into_iter().map(|name| Scraped::of(&format!("http://{name}"))).collect(),
        false => scrape.to_vec(),
    };
    head.start = sampler::start_of(&servers).await;
    if head.start.is_none() && args.output.is_some() && !args.json {
        eprintln!(
            "which start of the servers this run had is not known, since their /metrics do not say it: forebay compare names no winner \
             by such rows; --start N tells it"
        );
    }
}

/// The servers whose metrics are looked at.
pub(super) async fn scraped(args: &Args) -> Vec<Scraped> {
    if args.no_scrape {
        return Vec::new();
    }
    if !args.scrape.is_empty() {
        return args.scrape.iter().map(|target| Scraped::of(&target.base)).collect();
    }
    let itself = Scraped::of(&args.url.base);
    if itself.answers().await { vec![itself] } else { Vec::new() }
}

/// The first model that a server lists.
pub(super) async fn listed(client: &Client, target: &Target) -> Result<String, String> {
    let list = client.json(&format!("{}/v1/models", target.base), None).await.map_err(|error| error.to_string())?;
    let first = list["data"][0]["id"].as_str();
    first.map(str::to_owned).ok_or_else(|| format!("{} lists no model: name one with --model", target.base))
}
