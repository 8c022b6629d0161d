//! Sources over a resolver and an API server that tests make.

use std::io;
use std::path::Path;
use std::sync::Mutex;

use super::*;
use forebay_fleet::config::model::Config;
use forebay_fleet::config::{Loaded, load_text};
use forebay_fleet::membership::controller::Settings;
use forebay_fleet::source::SourceView;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

type Answers = Arc<Mutex<Result<Vec<SocketAddr>, io::ErrorKind>>>;

struct World {
    sources: Sources,
    answers: Answers,
}

impl World {
    fn of(pools: &str) -> World {
        let Loaded { config, .. } = load_text(Path::new("f.toml"), pools, &|_| None).unwrap();
        let (telemetry, clock) = (Arc::new(Telemetry::new()), Clock::system());
        let controller = Controller::new(Settings::from(&Config::default()), Arc::clone(&telemetry));
        controller.apply(&config.pools, clock.now());
        let answers = Answers::new(Mutex::new(Err(io::ErrorKind::NotFound)));
        let answer = Arc::clone(&answers);
        let resolve = Resolve::by(move |_, _| {
            let answer = answer.lock().unwrap().clone();
            async move { answer.map_err(io::Error::from) }
        });
        let sources = Sources {
            controller: Arc::new(controller),
            clock,
            telemetry,
            resolve,
            listener: Arc::new(|| "0.0.0.0:9999".parse().unwrap()),
            changed: Arc::new(|| {}),
        };
        World { sources, answers }
    }

    fn answer(&self, addresses: impl IntoIterator<Item = (u8, u8)>) {
        let address = |(third, last)| SocketAddr::from(([10, 0, third, last], 8000));
        *self.answers.lock().unwrap() = Ok(addresses.into_iter().map(address).collect());
    }

    fn serving(&self) -> usize {
        let snapshot = self.sources.controller.fleet().snapshot();
        snapshot.pools[0].members().iter().filter(|member| member.state.is_usable()).count()
    }

    fn all(&self) -> usize {
        self.sources.controller.fleet().snapshot().pools[0].members().len()
    }

    fn view(&self) -> SourceView {
        let snapshot = self.sources.controller.fleet().snapshot();
        snapshot.pools[0].arms()[0].source.as_ref().unwrap().view(self.sources.clock.now())
    }
}

async fn eventually(what: &str, mut is: impl FnMut() -> bool) {
    let wait = async {
        while !is() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(60), wait).await.unwrap_or_else(|_| panic!("{what} never came"));
}

const BY_NAME: &str = "[[pools]]\nmodel = \"m\"\ndiscover = { dns = \"vllm.example:8000\", interval = \"50ms\" }\n";

#[tokio::test(start_paused = true)]
async fn addresses_come_and_go_and_no_error_takes_one_away() {
    let world = World::of(BY_NAME);
    let task = tokio::spawn(world.sources.clone().run());
    eventually("the first error", || world.view().error.is_some()).await;
    assert_eq!((world.serving(), world.view().age_seconds), (0, None));
    world.answer([(0, 1)]);
    eventually("the first address", || world.serving() == 1).await;
    world.answer((1..=150).map(|n| (1, n)));
    eventually("150 in place of one", || world.serving() == 150 && world.all() == 150).await;
    *world.answers.lock().unwrap() = Err(io::ErrorKind::TimedOut);
    eventually("a dead server", || world.view().errors.contains(&("unresolved", 4))).await;
    world.answer([]);
    eventually("an empty answer", || world.view().error.is_some_and(|error| error.contains("no address"))).await;
    assert_eq!((world.serving(), world.view().found), (150, 150));
    world.answer([(1, 1), (1, 2)]);
    eventually("two are left", || world.all() == 2).await;
    assert_eq!((world.serving(), world.view().error), (2, None));
    task.abort();
}

#[tokio::test(start_paused = true)]
async fn more_than_the_cap_are_left_out_and_forebay_itself_is_no_backend() {
    let world = World::of(&BY_NAME.replace("interval", "max_backends = 3, interval").replace(":8000", ":9999"));
    *world.answers.lock().unwrap() = Ok(vec!["127.0.0.1:9999".parse().unwrap(), "10.0.0.1:9999".parse().unwrap()]);
    assert!(world.sources.ask_once(Duration::from_secs(1)).await);
    assert_eq!(world.serving(), 1);
    world.answer((1..=9).map(|n| (0, n)));
    world.sources.ask_once(Duration::from_secs(1)).await;
    assert_eq!((world.serving(), world.view().found, world.view().left_out), (3, 3, 6));
}

#[tokio::test(start_paused = true)]
async fn a_resolver_that_hangs_holds_the_start_up_for_no_longer_than_its_limit() {
    let mut world = World::of(BY_NAME);
    world.sources.resolve = Resolve::by(|_, _| std::future::pending());
    let asked = tokio::time::timeout(Duration::from_secs(6), world.sources.ask_once(Duration::from_secs(5))).await;
    assert_eq!(asked, Ok(false));
}

#[tokio::test(start_paused = true)]
async fn a_source_that_a_reload_changes_is_asked_anew_and_one_that_is_gone_no_more() {
    let world = World::of(BY_NAME);
    world.answer([(0, 1)]);
    let asked = Arc::new(Mutex::new(Vec::new()));
    let (seen, answers) = (Arc::clone(&asked), Arc::clone(&world.answers));
    let resolve = Resolve::by(move |host, _| {
        seen.lock().unwrap().push(host);
        let answer = answers.lock().unwrap().clone();
        async move { answer.map_err(io::Error::from) }
    });
    let task = tokio::spawn(Sources { resolve, ..world.sources.clone() }.run());
    eventually("the first", || world.serving() == 1).await;
    let apply = |text: &str| {
        let config = load_text(Path::new("f.toml"), text, &|_| None).unwrap().config;
        world.sources.controller.apply(&config.pools, world.sources.clock.now());
    };
    apply(&BY_NAME.replace("vllm", "other"));
    eventually("the other name", || asked.lock().unwrap().contains(&"other.example".to_owned())).await;
    asked.lock().unwrap().clear();
    eventually("more questions", || asked.lock().unwrap().len() > 4).await;
    assert!(!asked.lock().unwrap().contains(&"vllm.example".to_owned()));
    apply("[[pools]]\nmodel = \"m\"\nbackends = [{ url = \"http://10.0.0.1:8000\" }]\n");
    let quiet = async {
        loop {
            asked.lock().unwrap().clear();
            tokio::time::sleep(Duration::from_secs(1)).await;
            if asked.lock().unwrap().is_empty() {
                break;
            }
        }
    };
    tokio::time::timeout(Duration::from_secs(60), quiet).await.unwrap();
    task.abort();
}

/// An API server that lists one pod and then keeps the watch open without a word, or ends it.
async fn silent_server(lists: Arc<Mutex<Vec<String>>>, says: &'static str) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(serve(stream, Arc::clone(&lists), says));
        }
    });
    address
}

async fn serve(mut stream: TcpStream, lists: Arc<Mutex<Vec<String>>>, says: &'static str) -> io::Result<()> {
    const LIST: &str = r#"{"metadata":{"resourceVersion":"7"},"items":[{"metadata":{"name":"a"},"status":{"podIP":"10.0.0.1","conditions":[{"type":"Ready","status":"True"}]}}]}"#;
    loop {
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.push(stream.read_u8().await?);
        }
        let head = String::from_utf8_lossy(&head).into_owned();
        lists.lock().unwrap().push(head.lines().next().unwrap_or_default().to_owned());
        if head.contains("watch=1") {
            let chunk = format!("{:x}\r\n{says}\r\n", says.len());
            let body = if says.is_empty() { String::new() } else { chunk };
            stream.write_all(format!("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n{body}").as_bytes()).await?;
            std::future::pending::<()>().await;
        }
        let answer = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{LIST}", LIST.len());
        stream.write_all(answer.as_bytes()).await?;
    }
}

const SHORT: kubernetes::WatchTimes = kubernetes::WatchTimes {
    watch: 0..1,
    grace: Duration::from_millis(60),
    pause: Duration::from_millis(5),
    longest_pause: Duration::from_millis(40),
    steady: Duration::from_secs(30),
};

async fn broken_watch(says: &'static str) -> (Vec<String>, SourceView) {
    let lists = Arc::new(Mutex::new(Vec::new()));
    let address = silent_server(Arc::clone(&lists), says).await;
    let world = World::of(&format!(
        "[[pools]]\nmodel = \"m\"\ndiscover = {{ kubernetes = {{ selector = \"app=vllm\", namespace = \"n\", port = 80, \
         api = \"http://{address}\" }} }}\n"
    ));
    let arm = world.sources.wanted().remove(0);
    let DiscoverySource::Kubernetes(asked) = arm.source.discover.source.clone() else { unreachable!() };
    let task = tokio::spawn(async move { kubernetes::follow(&arm, &asked, &SHORT).await });
    let listed = || lists.lock().unwrap().iter().filter(|line| line.contains("limit=")).count();
    eventually("lists anew", || listed() >= 4).await;
    task.abort();
    assert_eq!(world.serving(), 1);
    let lines = lists.lock().unwrap().clone();
    (lines, world.view())
}

#[tokio::test]
async fn a_watch_that_is_silent_past_its_time_is_dead_and_the_list_is_made_anew() {
    let (lines, view) = broken_watch("").await;
    assert!(view.errors.iter().any(|(reason, count)| *reason == "timeout" && *count >= 2), "{view:?}");
    let list = "GET /api/v1/namespaces/n/pods?labelSelector=app%3Dvllm&limit=250 HTTP/1.1";
    let watch = "GET /api/v1/namespaces/n/pods?labelSelector=app%3Dvllm&watch=1&allowWatchBookmarks=true&timeoutSeconds=0&resourceVersion=7 HTTP/1.1";
    assert_eq!(&lines[..2], [list, watch]);
}

#[tokio::test]
async fn a_line_that_cannot_be_read_ends_the_watch_and_takes_nothing_away() {
    let (_, view) = broken_watch("{\"type\":\"DELETED\",\"object\":\n").await;
    assert!(view.errors.iter().any(|(reason, count)| *reason == "unreadable" && *count >= 2), "{view:?}");
}
