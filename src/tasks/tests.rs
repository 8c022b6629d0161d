//! Tasks against small servers on loopback ports, with short intervals; every wait has a deadline.

use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use super::discover::discover;
use super::prober::Prober;
use super::scraper::Scraper;
use super::*;
use forebay_fleet::config::Config;
use forebay_fleet::config::model::{BackendConfig, PoolConfig};
use forebay_fleet::membership::controller::{Controller, Settings};
use forebay_fleet::telemetry::Telemetry;

const METRICS: &str = "vllm:num_requests_running 2\nvllm:num_requests_waiting 7\n";
const MODELS: &str = r#"{"data":[{"id":"m"},{"id":"alias"}]}"#;

#[derive(Clone, Copy, PartialEq)]
enum Mood {
    Well,
    Hung,
    Dead,
}

/// A backend on a port of its own, which counts what it is asked.
struct Mock {
    url: BackendUrl,
    mood: Arc<Mutex<Mood>>,
    asked: Arc<AtomicUsize>,
}

impl Mock {
    async fn start(mood: Mood) -> Mock {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap()).parse().unwrap();
        let mock = Mock { url, mood: Arc::new(Mutex::new(mood)), asked: Arc::default() };
        let (mood, asked) = (Arc::clone(&mock.mood), Arc::clone(&mock.asked));
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(serve(stream, Arc::clone(&mood), Arc::clone(&asked)));
            }
        });
        mock
    }

    fn set(&self, mood: Mood) {
        *self.mood.lock().unwrap() = mood;
    }
}

async fn serve(mut stream: TcpStream, mood: Arc<Mutex<Mood>>, asked: Arc<AtomicUsize>) -> std::io::Result<()> {
    loop {
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.push(stream.read_u8().await?);
        }
        asked.fetch_add(1, Ordering::Relaxed);
        let head = String::from_utf8_lossy(&head).into_owned();
        let mood = *mood.lock().unwrap();
        if mood == Mood::Hung {
            std::future::pending::<()>().await;
        }
        let body = match head.split(' ').nth(1) {
            Some("/metrics") => METRICS,
            Some("/v1/models") => MODELS,
            _ => "",
        };
        let status = if mood == Mood::Dead { "503 Service Unavailable" } else { "200 OK" };
        stream
            .write_all(format!("HTTP/1.1 {status}\r\ncontent-length: {}\r\n\r\n{body}", body.len()).as_bytes())
            .await?;
    }
}

fn pool(mocks: &[&Mock]) -> PoolConfig {
    PoolConfig::of("m", mocks.iter().map(|mock| BackendConfig::of(mock.url.clone())).collect())
}

struct World {
    controller: Arc<Controller>,
    telemetry: Arc<Telemetry>,
    clock: Clock,
}

impl World {
    fn of(mocks: &[&Mock]) -> World {
        let clock = Clock::system();
        let telemetry = Arc::new(Telemetry::new());
        let controller = Arc::new(Controller::new(Settings::from(&Config::default()), Arc::clone(&telemetry)));
        controller.apply(&[pool(mocks)], clock.now());
        World { controller, telemetry, clock }
    }

    fn pace() -> RhythmSource {
        Arc::new(|| Rhythm { interval: Duration::from_millis(20), timeout: Duration::from_millis(500) })
    }

    fn scraper(&self) -> Scraper {
        Scraper {
            fleet: self.controller.fleet().clone(),
            clock: self.clock.clone(),
            pace: World::pace(),
            telemetry: Arc::new(Telemetry::new()),
        }
    }

    fn prober(&self) -> Prober {
        Prober {
            controller: Arc::clone(&self.controller),
            clock: self.clock.clone(),
            pace: World::pace(),
            patience: Arc::new(|| Duration::from_millis(200)),
            telemetry: Arc::new(Telemetry::new()),
        }
    }

    fn queue_depth(&self, at: usize) -> Option<f64> {
        let snapshot = self.controller.fleet().snapshot();
        let backend = snapshot.backends().nth(at)?;
        let view = serde_json::to_value(backend.load.view(self.clock.now())).unwrap();
        view["scrape"]["sample"]["waiting"].as_f64()
    }

    fn state(&self) -> &'static str {
        self.controller.fleet().snapshot().pools[0].members()[0].state.label()
    }
}

async fn eventually(what: &str, mut is: impl FnMut() -> bool) {
    let wait = async {
        while !is() {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(10), wait).await.unwrap_or_else(|_| panic!("{what} never came"));
}

#[tokio::test]
async fn a_hung_backend_delays_no_other_scrape() {
    let (hung, well) = (Mock::start(Mood::Hung).await, Mock::start(Mood::Well).await);
    let world = World::of(&[&hung, &well]);
    let task = tokio::spawn(world.scraper().run());
    eventually("ten scrapes of the other", || well.asked.load(Ordering::Relaxed) >= 10).await;
    assert!(hung.asked.load(Ordering::Relaxed) <= 2);
    eventually("the sample", || world.queue_depth(1) == Some(7.0)).await;
    assert_eq!(world.queue_depth(0), None);
    task.abort();
}

#[tokio::test]
async fn failed_scrapes_are_counted_and_the_backend_is_not_idle() {
    let mock = Mock::start(Mood::Dead).await;
    let world = World::of(&[&mock]);
    let task = tokio::spawn(world.scraper().run());
    let counted = || {
        let row = format!("pool=\"m\",arm=\"default\",backend=\"{}\",reason=\"status\"}} ", mock.url.authority());
        let text = world.telemetry.render(&[row_of(&mock)], &[]);
        text.lines().find_map(|line| line.split_once(&row)?.1.parse::<u64>().ok())
    };
    eventually("the count", || counted() >= Some(2)).await;
    assert_eq!(world.queue_depth(0), None);
    mock.set(Mood::Well);
    eventually("the sample", || world.queue_depth(0) == Some(7.0)).await;
    task.abort();
}

fn row_of(mock: &Mock) -> forebay_fleet::telemetry::live::BackendRow {
    forebay_fleet::telemetry::live::BackendRow {
        pool: "m".into(),
        arm: "default".into(),
        backend: mock.url.authority().into(),
        readings: Vec::new(),
    }
}

#[tokio::test]
async fn a_removed_backend_is_asked_no_more_and_a_new_one_is() {
    let (old, new) = (Mock::start(Mood::Well).await, Mock::start(Mood::Well).await);
    let world = World::of(&[&old]);
    let task = tokio::spawn(world.scraper().run());
    eventually("a scrape of the old", || old.asked.load(Ordering::Relaxed) > 0).await;
    world.controller.apply(&[pool(&[&new])], world.clock.now());
    eventually("a scrape of the new", || new.asked.load(Ordering::Relaxed) > 0).await;
    let then = old.asked.load(Ordering::Relaxed);
    eventually("more of the new", || new.asked.load(Ordering::Relaxed) > 5).await;
    assert!(old.asked.load(Ordering::Relaxed) <= then + 1);
    task.abort();
}

#[tokio::test]
async fn a_dead_health_ejects_and_a_live_one_lists_its_models() {
    let mock = Mock::start(Mood::Well).await;
    let world = World::of(&[&mock]);
    let task = tokio::spawn(world.prober().run());
    let lists = |name| world.controller.fleet().snapshot().backends().next().unwrap().lists(name);
    eventually("its models", || lists("m") && lists("alias")).await;
    assert_eq!(world.state(), "healthy");
    mock.set(Mood::Dead);
    eventually("the ejection", || world.state() != "healthy").await;
    task.abort();
}

#[tokio::test]
async fn a_backend_that_serves_its_model_again_is_no_longer_misconfigured() {
    let mock = Mock::start(Mood::Dead).await;
    let world = World::of(&[&mock]);
    let id = world.controller.fleet().snapshot().backends().next().unwrap().id;
    world.controller.misconfigured(id, "404 for m", world.clock.now());
    assert_eq!(world.state(), "misconfigured");
    mock.set(Mood::Well);
    let task = tokio::spawn(world.prober().run());
    eventually("its return", || world.state() == "healthy").await;
    task.abort();
}

#[tokio::test]
async fn backends_are_discovered_as_they_come_up() {
    let (up, late) = (Mock::start(Mood::Well).await, Mock::start(Mood::Dead).await);
    let applied: Arc<Mutex<Vec<Vec<PoolConfig>>>> = Arc::default();
    let sink = Arc::clone(&applied);
    let backends = vec![BackendConfig::of(late.url.clone()), BackendConfig::of(up.url.clone())];
    let task = tokio::spawn(discover(backends, Fleet::default(), move |pools: &[PoolConfig], _| {
        sink.lock().unwrap().push(pools.to_vec());
    }));
    eventually("the first pool", || applied.lock().unwrap().len() == 1).await;
    assert_eq!(applied.lock().unwrap()[0][0].arms[0].backends.len(), 1);
    late.set(Mood::Well);
    eventually("the second backend", || applied.lock().unwrap().len() == 2).await;
    task.abort();
    let last = applied.lock().unwrap().pop().unwrap();
    assert_eq!((last.len(), last[0].model.as_str(), last[0].arms[0].backends.len()), (1, "m", 2));
    assert_eq!(last[0].arms[0].backends[0].url, late.url);
}

#[tokio::test(start_paused = true)]
async fn a_task_that_panics_begins_anew_and_is_counted() {
    let (telemetry, begun) = (Arc::new(Telemetry::new()), Arc::new(std::sync::atomic::AtomicU32::new(0)));
    let count = Arc::clone(&begun);
    let task = tokio::spawn(kept(Arc::clone(&telemetry), move || {
        let before = count.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        async move { assert!(before >= 2, "a bug") }
    }));
    task.await.unwrap();
    assert_eq!(begun.load(std::sync::atomic::Ordering::Relaxed), 3);
    assert!(telemetry.render(&[], &[]).contains("forebay_panics_total{where=\"task\"} 2"));
}
