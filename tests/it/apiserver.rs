//! An API server of Kubernetes, as far as discovery talks to one: lists in pages, watches with bookmarks, and what goes wrong with
//! both. It is a mock: its answers follow the API's documentation.

use std::collections::{BTreeMap, HashMap};
use std::io::{BufRead, BufReader, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

use serde_json::{Value, json};

use crate::cluster_objects::{inference_pool, pod, replicas_slice, slice};
use crate::harness::eventually;
use crate::mock::Mock;

const TOKEN: &str = "token-of-the-account";

/// What an answer is in place of a good one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Trouble {
    /// 403 to a list and to a watch.
    Forbidden,
    /// A watch gets 200, and then an event with code 410.
    Expired,
    /// A list of which the second page is too old.
    ExpiredPage,
    /// A body that is no JSON.
    Garbage,
    /// An event that has no end.
    EndlessLine,
    /// 404 to all but pods, as a server says that does not know the kind.
    Unserved,
}

#[derive(Default)]
struct State {
    objects: BTreeMap<String, Value>,
    version: u64,
    /// Every event so far, but for those that were lost: the version, the line, and the object.
    events: Vec<(u64, String, Value)>,
    trouble: Option<Trouble>,
    /// Events are lost while it is set.
    deaf: bool,
    lists: usize,
    watches: usize,
    tokens: Vec<String>,
    paths: Vec<String>,
}

struct Shared {
    state: Mutex<State>,
    /// Open watches, with what each asked for.
    watchers: Mutex<HashMap<usize, (String, TcpStream)>>,
    open: Mutex<HashMap<usize, TcpStream>>,
    stopped: AtomicBool,
    /// Objects of one page.
    page: usize,
}

/// The server.
pub(crate) struct ApiServer {
    shared: Arc<Shared>,
    pub(crate) address: SocketAddr,
    listening: Mutex<Option<JoinHandle<()>>>,
}

impl ApiServer {
    pub(crate) fn start() -> ApiServer {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let shared = Arc::new(Shared {
            state: Mutex::new(State { version: 100, ..State::default() }),
            watchers: Mutex::default(),
            open: Mutex::default(),
            stopped: AtomicBool::new(false),
            page: 2,
        });
        let listening = listen(&shared, listener);
        ApiServer { shared, address, listening: Mutex::new(Some(listening)) }
    }

    /// The keys of `kubernetes` beside the selector; the token is in a file beside the configuration.
    pub(crate) fn keys(&self) -> String {
        format!("port = \"http\", {}", self.cluster())
    }

    /// The keys of `kubernetes` that say where it is.
    pub(crate) fn cluster(&self) -> String {
        format!("namespace = \"inference\", api = \"http://{}\", token_file = \"token\"", self.address)
    }

    /// The token that it takes.
    pub(crate) fn token() -> &'static str {
        TOKEN
    }

    /// A pod at the address of this backend, Ready.
    pub(crate) fn add(&self, name: &str, mock: &Mock) {
        self.put(name, pod(name, mock));
    }

    /// Makes or changes an EndpointSlice of the Service `vllm` with this backend alone.
    pub(crate) fn put_slice(&self, name: &str, mock: &Mock, conditions: &Value) {
        self.put(name, slice(name, mock, conditions));
    }

    /// Makes or changes the EndpointSlice of the Service `forebay`: its replicas, each Ready or not.
    pub(crate) fn put_replicas(&self, ready: &[bool]) {
        self.put("forebay-1", replicas_slice("forebay-1", ready));
    }

    /// Makes or changes an InferencePool of the pods with `app=vllm`.
    pub(crate) fn put_pool(&self, name: &str, ports: &[u16], parents: &Value) {
        self.put(name, inference_pool(name, ports, parents));
    }

    /// Changes a pod.
    pub(crate) fn change(&self, name: &str, change: impl FnOnce(&mut Value)) {
        let mut pod = self.shared.state.lock().unwrap().objects[name].clone();
        change(&mut pod);
        self.put(name, pod);
    }

    /// Sets the Ready condition of a pod.
    pub(crate) fn set_ready(&self, name: &str, ready: bool) {
        self.change(name, |pod| {
            pod["status"]["conditions"][0]["status"] = if ready { "True" } else { "False" }.into();
        });
    }

    /// Lets a pod end: it is terminating until it is removed.
    pub(crate) fn terminate(&self, name: &str) {
        self.change(name, |pod| pod["metadata"]["deletionTimestamp"] = "2026-11-30T12:00:00Z".into());
    }

    /// A pod is gone, or its label is.
    pub(crate) fn remove(&self, name: &str) {
        let mut state = self.shared.state.lock().unwrap();
        state.version += 1;
        let version = state.version;
        let Some(mut object) = state.objects.remove(name) else { return };
        object["metadata"]["resourceVersion"] = version.to_string().into();
        self.tell(&mut state, "DELETED", &object);
    }

    fn put(&self, name: &str, mut object: Value) {
        let mut state = self.shared.state.lock().unwrap();
        state.version += 1;
        object["metadata"]["resourceVersion"] = state.version.to_string().into();
        let kind = if state.objects.insert(name.to_owned(), object.clone()).is_some() { "MODIFIED" } else { "ADDED" };
        self.tell(&mut state, kind, &object);
    }

    fn tell(&self, state: &mut State, kind: &str, object: &Value) {
        if state.deaf {
            return;
        }
        let line = format!("{}\n", json!({"type": kind, "object": object}));
        state.events.push((state.version, line.clone(), object.clone()));
        let mut watchers = self.shared.watchers.lock().unwrap();
        watchers.retain(|_, (target, stream)| !is_asked_for(target, object) || send_chunk(stream, &line).is_ok());
    }

    /// What goes wrong from now on; watches that are open end.
    pub(crate) fn trouble(&self, trouble: Option<Trouble>) {
        self.shared.state.lock().unwrap().trouble = trouble;
        self.end_watches();
    }

    /// Loses the events from now on.
    pub(crate) fn deaf(&self, deaf: bool) {
        self.shared.state.lock().unwrap().deaf = deaf;
    }

    /// Ends all watches, as at the end of their time.
    pub(crate) fn end_watches(&self) {
        for (_, (_, mut stream)) in self.shared.watchers.lock().unwrap().drain() {
            _ = stream.write_all(b"0\r\n\r\n");
            _ = stream.shutdown(Shutdown::Both);
        }
    }

    /// As one that is killed: connections break, and nobody listens.
    pub(crate) fn kill(&self) {
        self.shared.stopped.store(true, Ordering::Release);
        drop(TcpStream::connect(self.address));
        drop(self.listening.lock().unwrap().take().map(JoinHandle::join));
        self.shared.watchers.lock().unwrap().clear();
        for (_, stream) in self.shared.open.lock().unwrap().drain() {
            _ = stream.shutdown(Shutdown::Both);
        }
    }

    /// Listens again, on the same address and with the same objects.
    pub(crate) fn start_again(&self) {
        self.shared.stopped.store(false, Ordering::Release);
        let listener = eventually("the address is free", || TcpListener::bind(self.address).ok());
        *self.listening.lock().unwrap() = Some(listen(&self.shared, listener));
    }

    /// Whole lists and watches that it was asked for.
    pub(crate) fn asked(&self) -> (usize, usize) {
        let state = self.shared.state.lock().unwrap();
        (state.lists, state.watches)
    }

    /// Waits until somebody watches who has not watched before.
    pub(crate) fn await_watch_after(&self, watches: usize) {
        eventually("another watch", || {
            (self.asked().1 > watches && !self.shared.watchers.lock().unwrap().is_empty()).then_some(())
        });
    }

    /// The tokens that it was shown, each once, in their order.
    pub(crate) fn tokens(&self) -> Vec<String> {
        let mut tokens = self.shared.state.lock().unwrap().tokens.clone();
        tokens.dedup();
        tokens
    }

    /// The paths that it was asked for.
    pub(crate) fn paths(&self) -> Vec<String> {
        self.shared.state.lock().unwrap().paths.clone()
    }
}

impl Drop for ApiServer {
    fn drop(&mut self) {
        self.kill();
    }
}

fn kind_of(target: &str) -> &'static str {
    let kinds = [("/inferencepools?", "InferencePool"), ("/endpointslices?", "EndpointSlice")];
    kinds.iter().find(|(path, _)| target.contains(path)).map_or("Pod", |(_, kind)| kind)
}

/// Returns whether an object is of the kind, and has the labels or the name, that a list or a watch asks for.
fn is_asked_for(target: &str, object: &Value) -> bool {
    let asked = |key: &str| target.split(['?', '&']).find_map(|part| part.strip_prefix(key));
    let plain = |text: &str| text.replace("%3D", "=").replace("%2C", ",").replace("%2F", "/");
    let has =
        |pair: &str| pair.split_once('=').is_some_and(|(label, value)| object["metadata"]["labels"][label] == value);
    object["kind"] == kind_of(target)
        && asked("labelSelector=").is_none_or(|selector| plain(selector).split(',').all(has))
        && asked("fieldSelector=")
            .is_none_or(|field| plain(field).strip_prefix("metadata.name=") == object["metadata"]["name"].as_str())
}

fn send_chunk(stream: &mut TcpStream, text: &str) -> std::io::Result<()> {
    stream.write_all(format!("{:x}\r\n{text}\r\n", text.len()).as_bytes())
}

fn listen(shared: &Arc<Shared>, listener: TcpListener) -> JoinHandle<()> {
    let shared = Arc::clone(shared);
    std::thread::spawn(move || {
        for (number, stream) in listener.incoming().map_while(Result::ok).enumerate() {
            if shared.stopped.load(Ordering::Acquire) {
                return;
            }
            let number = number + 1000 * shared.state.lock().unwrap().watches;
            shared.open.lock().unwrap().insert(number, stream.try_clone().unwrap());
            let shared = Arc::clone(&shared);
            std::thread::spawn(move || _ = serve(&shared, stream, number));
        }
    })
}

fn serve(shared: &Shared, mut stream: TcpStream, number: usize) -> std::io::Result<()> {
    let mut reader = BufReader::new(stream.try_clone()?);
    loop {
        let (mut target, mut token) = (String::new(), String::new());
        loop {
            let mut line = String::new();
            if reader.read_line(&mut line)? == 0 {
                return Ok(());
            }
            match line.trim_end() {
                "" => break,
                head if target.is_empty() => head.split(' ').nth(1).unwrap_or_default().clone_into(&mut target),
                header => {
                    if let Some(value) = header.strip_prefix("authorization: Bearer ") {
                        value.clone_into(&mut token);
                    }
                }
            }
        }
        let mut state = shared.state.lock().unwrap();
        state.tokens.push(token.clone());
        state.paths.push(target.clone());
        if !token.starts_with(TOKEN) {
            refuse(&mut stream, 401, "Unauthorized")?;
        } else if state.trouble == Some(Trouble::Forbidden) {
            refuse(
                &mut stream,
                403,
                "pods is forbidden: User \\\"system:serviceaccount:inference:forebay\\\" cannot list",
            )?;
        } else if kind_of(&target) != "Pod" && state.trouble == Some(Trouble::Unserved) {
            reply(&mut stream, 404, "404 page not found\n")?;
        } else if target.contains("watch=1") && state.trouble == Some(Trouble::EndlessLine) {
            state.watches += 1;
            drop(state);
            return endless(&mut stream);
        } else if target.contains("watch=1") {
            watch(shared, &mut state, stream.try_clone()?, (number, target))?;
        } else {
            list(shared, &mut state, &mut stream, &target)?;
        }
    }
}

fn refuse(stream: &mut TcpStream, code: u16, message: &str) -> std::io::Result<()> {
    let body = format!("{{\"kind\":\"Status\",\"status\":\"Failure\",\"message\":\"{message}\",\"code\":{code}}}");
    reply(stream, code, &body)
}

fn reply(stream: &mut TcpStream, code: u16, body: &str) -> std::io::Result<()> {
    let length = body.len();
    stream.write_all(
        format!("HTTP/1.1 {code} Said\r\ncontent-type: application/json\r\ncontent-length: {length}\r\n\r\n{body}")
            .as_bytes(),
    )
}

/// Pages of the objects by their names: the token of a page is the name that it begins after.
fn list(shared: &Shared, state: &mut State, stream: &mut TcpStream, target: &str) -> std::io::Result<()> {
    if state.trouble == Some(Trouble::Garbage) {
        return reply(stream, 200, "<html>no list</html>");
    }
    let after = target.split('&').find_map(|part| part.strip_prefix("continue=")).unwrap_or_default();
    if !after.is_empty() && state.trouble == Some(Trouble::ExpiredPage) {
        return refuse(stream, 410, "The provided continue parameter is too old");
    }
    let mut left = state.objects.iter().filter(|(name, object)| name.as_str() > after && is_asked_for(target, object));
    let page: Vec<_> = left.by_ref().take(shared.page).collect();
    let next = left.next().and_then(|_| page.last()).map_or("", |(name, _)| name.as_str()).to_owned();
    let items: Vec<&Value> = page.iter().map(|(_, object)| *object).collect();
    let body = json!({
        "kind": format!("{}List", kind_of(target)), "apiVersion": "v1", "items": items,
        "metadata": {"resourceVersion": state.version.to_string(), "continue": next},
    });
    if next.is_empty() {
        state.lists += 1;
    }
    reply(stream, 200, &body.to_string())
}

const WATCH_HEAD: &[u8] = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ntransfer-encoding: chunked\r\n\r\n";

/// A line without an end, until nobody reads it.
fn endless(stream: &mut TcpStream) -> std::io::Result<()> {
    stream.write_all(WATCH_HEAD)?;
    let piece = "x".repeat(64 << 10);
    loop {
        send_chunk(stream, &piece)?;
    }
}

fn watch(
    shared: &Shared,
    state: &mut State,
    mut stream: TcpStream,
    (number, target): (usize, String),
) -> std::io::Result<()> {
    state.watches += 1;
    stream.write_all(WATCH_HEAD)?;
    if state.trouble == Some(Trouble::Expired) {
        let status = json!({"kind": "Status", "code": 410, "message": "too old resource version: 1 (100)"});
        send_chunk(&mut stream, &format!("{}\n", json!({"type": "ERROR", "object": status})))?;
        stream.write_all(b"0\r\n\r\n")?;
        return stream.shutdown(Shutdown::Both);
    }
    // What came after the list, and before the watch.
    let since = target.split('&').find_map(|part| part.strip_prefix("resourceVersion=")).and_then(|at| at.parse().ok());
    let missed = |version: u64| since.is_some_and(|since: u64| version > since);
    for (_, line, _) in state.events.iter().filter(|(at, _, object)| missed(*at) && is_asked_for(&target, object)) {
        send_chunk(&mut stream, line)?;
    }
    let bookmark = json!({"kind": kind_of(&target), "metadata": {"resourceVersion": state.version.to_string()}});
    send_chunk(&mut stream, &format!("{}\n", json!({"type": "BOOKMARK", "object": bookmark})))?;
    // Under the lock of the state, so that no event falls between.
    shared.watchers.lock().unwrap().insert(number, (target, stream));
    Ok(())
}
