//! Backends by an InferencePool: one watch keeps what the pool says, another the pods that it names. A pool that is changed names other
//! pods from then on. One that is deleted, or cannot be read, takes nothing away: its pods go on being followed.

use std::time::Duration;

use tokio::sync::watch;

use super::api::{Api, fault, of_code};
use super::kubernetes::{self, LARGEST_EVENT, LARGEST_PAGE, Pauses, WatchTimes, too_long, unusable};
use super::{Fault, SourceQuestion};
use forebay_core::kubernetes::{InferencePool, Lines, Members, PoolEvent, Port, TooLong, listed_pool, pool_event};
use forebay_fleet::config::model::{Kubernetes, Whom};
use forebay_fleet::telemetry::labels::DiscoveryFailure;

/// The list is of one object.
const PAGE: u32 = 10;

/// Follows the pool of this name and its pods until it is dropped.
pub(super) async fn follow(question: &SourceQuestion, (asked, name): (&Kubernetes, &str), times: &WatchTimes) {
    let (pods, mut named) = watch::channel::<Option<Kubernetes>>(None);
    let members = async {
        loop {
            let pods = named.borrow_and_update().clone();
            let followed = async {
                match &pods {
                    Some(pods) => kubernetes::follow(question, pods, times).await,
                    None => std::future::pending().await,
                }
            };
            // What is followed never ends by itself. Other pods are listed anew.
            tokio::select! {
                () = followed => {}
                changed = named.changed() => if changed.is_err() { return },
            }
        }
    };
    tokio::join!(follow_pool(question, (asked, name), times, &pods), members);
}

/// Asks once for the pool of this name and for its pods.
pub(super) async fn ask(question: &SourceQuestion, (asked, name): (&Kubernetes, &str)) -> Result<Members, Fault> {
    let (pool, _) = list(&mut Api::new(asked), name).await?;
    kubernetes::ask(&taken(question, asked, pool)).await
}

/// Lists and watches the pool, and tells which pods it names.
async fn follow_pool(
    question: &SourceQuestion,
    (asked, name): (&Kubernetes, &str),
    times: &WatchTimes,
    pods: &watch::Sender<Option<Kubernetes>>,
) {
    let (mut api, mut pauses, mut missed) = (Api::new(asked), Pauses::new(times), false);
    loop {
        let started = question.all.clock.now();
        let take = |pool| {
            let new = Some(taken(question, asked, pool));
            // What gateways write into its status is no reason to list the pods anew.
            pods.send_if_modified(|old| {
                if *old == new {
                    false
                } else {
                    *old = new;
                    true
                }
            })
        };
        let ended = match list(&mut api, name).await {
            Ok((pool, version)) => {
                // A pool that is back with the same pods: their own watch may say nothing for a minute, and the error would stand.
                if !take(pool) && std::mem::take(&mut missed) {
                    question.source.confirmed(question.all.clock.now());
                }
                watch_pool(&api, (name, &version), question, times, &take).await
            }
            Err(fault) => Err(fault),
        };
        missed |= ended.is_err();
        pauses.after(question, started, ended).await;
    }
}

async fn list(api: &mut Api<'_>, name: &str) -> Result<(InferencePool, String), Fault> {
    api.find().await?;
    let body = api.list(PAGE, None, LARGEST_PAGE).await?;
    match listed_pool(&body, name).map_err(|error| unusable(&error))? {
        (Some(pool), version) => Ok((pool, version)),
        (None, _) => Err(missing(name)),
    }
}

/// Follows the pool until the watch ends. `Ok`: the server ended it in its time.
async fn watch_pool(
    api: &Api<'_>,
    (name, version): (&str, &str),
    question: &SourceQuestion,
    times: &WatchTimes,
    take: &impl Fn(InferencePool) -> bool,
) -> Result<(), Fault> {
    let seconds = fastrand::u64(times.watch.clone());
    let (started, limit) = (question.all.clock.now(), Duration::from_secs(seconds) + times.grace);
    let mut stream = api.watch(version, seconds).await?;
    let mut lines = Lines::of_at_most(LARGEST_EVENT);
    loop {
        let left = limit.saturating_sub(question.all.clock.now().since(started));
        let Some(data) = stream.next(left).await.map_err(fault)? else { return Ok(()) };
        lines.push(&data);
        while let Some(line) = lines.next_line().map_err(|error: TooLong| too_long(&error))? {
            match pool_event(&line, name).map_err(|error| unusable(&error))? {
                PoolEvent::Is(pool) => _ = take(pool),
                PoolEvent::Gone => return Err(missing(name)),
                PoolEvent::Same => {}
                PoolEvent::Ended(code, message) => {
                    return Err(Fault::new(of_code(code), format!("the API server ended the watch: {code} {message}")));
                }
            }
        }
    }
}

/// Shows what gateways say of the pool, and returns what to ask for its pods.
fn taken(question: &SourceQuestion, asked: &Kubernetes, pool: InferencePool) -> Kubernetes {
    question.source.told(pool.conditions);
    let ports = pool.ports.into_iter().map(Port::Number).collect();
    Kubernetes { whom: Whom::Selector(pool.selector), ports, ..asked.clone() }
}

fn missing(name: &str) -> Fault {
    Fault::new(DiscoveryFailure::Empty, format!("there is no InferencePool {name} in the namespace"))
}
