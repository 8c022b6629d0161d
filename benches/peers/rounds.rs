//! A run: the contenders in turns, round after round, in an order that changes, so that a drift of the machine favours nobody.

use std::collections::BTreeMap;
use std::io::{BufRead as _, BufReader};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use super::Fallible;
use super::client::{MODEL, OTHER_MODEL};
use super::contenders::{Contender, Field};
use super::figures::Table;
use super::options::{Name, Options, Work};
use super::process::Process;
use super::report::{self, Report};
use super::tls::Tls;
use super::works::{apart, figures, standing};

/// The most that one contender may take for one round of one work.
const PATIENCE: Duration = Duration::from_secs(180);

/// What one run has found so far.
struct Run<'a> {
    options: &'a Options,
    field: Field,
    tables: Vec<Table>,
    /// Contenders that failed, with the work and the reason; they take no further part in that work.
    failed: BTreeMap<(String, Name), String>,
}

/// Measures, prints and writes what the options ask for. Returns whether all went well.
pub(super) async fn run(options: &Options) -> Fallible<bool> {
    let found = Field::find(options);
    // Dropped after the contenders, also where a signal ends the run.
    let dir = tempfile::Builder::new().prefix("forebay-peers-").tempdir()?;
    measured(options, found, dir.path().to_owned()).await
}

async fn measured(options: &Options, found: Vec<(Name, String)>, dir: std::path::PathBuf) -> Fallible<bool> {
    let (_upstream, upstreams) = start_upstream(options.upstreams(), MODEL)?;
    let (_other, others) = start_upstream(2, OTHER_MODEL)?;
    let tables = options
        .works
        .iter()
        .flat_map(|work| figures(*work, options).into_iter().map(|figure| Table::new(*work, figure)));
    let mut run = Run {
        options,
        field: Field {
            tls: options.tls.then(|| Tls::make(&dir)).transpose()?,
            dir,
            upstreams,
            others,
            threads: options.threads,
        },
        tables: tables.collect(),
        failed: BTreeMap::new(),
    };
    let names: Vec<Name> = found.iter().map(|(name, _)| *name).collect();
    let began = Instant::now();
    let standing = run.start_standing(&names).await;
    let mut rounds = 0;
    for round in 0..options.rounds {
        if began.elapsed().as_secs_f64() > options.limit * 60.0 {
            println!("no further round: the limit of {} minutes is reached", options.limit);
            break;
        }
        println!("round {} of {}, {:.0} s after the start", round + 1, options.rounds, began.elapsed().as_secs_f64());
        for work in &options.works {
            run.round(*work, round, &names, &standing).await;
        }
        rounds = round + 1;
    }
    drop(standing);
    let Run { tables, failed, .. } = run;
    let failed = failed.into_iter().map(|((work, name), why)| format!("{work}: {name}: {why}")).collect();
    let report = Report { options, rounds, contenders: found, tables, failed };
    print!("{}", report::text(&report));
    report::write(&report)?;
    Ok(report.failed.is_empty() && (!options.check || report::targets_met(&report)))
}

/// Starts an upstream of so many servers, a child of this binary.
fn start_upstream(servers: u32, model: &str) -> Fallible<(Process, Vec<u16>)> {
    let mut command = Command::new(std::env::current_exe()?);
    command.env(super::ROLE, format!("upstream {servers} {model}")).stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut process = Process::start(&mut command)?;
    let mut lines = BufReader::new(process.stdout()?).lines();
    let mut port = || -> Fallible<u16> { Ok(lines.next().ok_or("the upstream ended")??.parse()?) };
    let ports = (0..servers).map(|_| port()).collect::<Fallible<Vec<u16>>>()?;
    Ok((process, ports))
}

impl Run<'_> {
    /// Starts the contenders that serve all works but those that start their own.
    async fn start_standing(&mut self, names: &[Name]) -> Vec<Contender> {
        let mut standing = Vec::new();
        if self.options.works.iter().all(|work| work.starts_its_own()) {
            return standing;
        }
        for name in names {
            match self.field.start(*name, &self.field.setup()).await {
                Ok(contender) => standing.push(contender),
                Err(error) => self.fail("start", *name, &*error),
            }
        }
        standing
    }

    /// One round of one work, each contender once.
    async fn round(&mut self, work: Work, round: u32, names: &[Name], standing: &[Contender]) {
        let mut order = names.to_vec();
        if work == Work::Latency {
            order.push(Name::Direct);
        }
        fastrand::Rng::with_seed(u64::from(round)).shuffle(&mut order);
        for name in order {
            if self.failed.contains_key(&(work.to_string(), name)) {
                continue;
            }
            match self.measure(work, name, standing).await {
                Ok(values) => self.push(work, name, round, &values),
                Err(error) => self.fail(&work.to_string(), name, &*error),
            }
        }
    }

    async fn measure(&self, work: Work, name: Name, contenders: &[Contender]) -> Fallible<Vec<Option<f64>>> {
        let measuring = async {
            if work.starts_its_own() {
                return apart(work, &self.field, name, self.options).await;
            }
            let direct = (name == Name::Direct).then(|| Contender::direct(self.field.upstreams[0]));
            let contender = direct.as_ref().or_else(|| contenders.iter().find(|contender| contender.name == name));
            let values = standing(work, contender.ok_or("it did not start")?, self.options).await?;
            Ok(values.into_iter().map(Some).collect())
        };
        tokio::time::timeout(PATIENCE, measuring).await.map_err(|_| "it took more than 180 s")?
    }

    fn push(&mut self, work: Work, name: Name, round: u32, values: &[Option<f64>]) {
        let shown: Vec<String> = values.iter().map(|value| value.map_or("-".to_owned(), report::number)).collect();
        println!("  {:8} {:8} {}", work.to_string(), name.text(), shown.join("  "));
        for (table, value) in self.tables.iter_mut().filter(|table| table.work == work).zip(values) {
            if let Some(value) = value {
                table.push(name, round, *value);
            }
        }
    }

    fn fail(&mut self, work: &str, name: Name, error: &dyn std::error::Error) {
        println!("  {work:8} {:8} FAILED: {error}", name.text());
        self.failed.insert((work.to_owned(), name), error.to_string());
    }
}
