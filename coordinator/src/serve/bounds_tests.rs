//! What is malformed, huge or endless is refused, changes nothing, and keeps nobody else from being served.

use pgleap_proto::bounds;
use pgleap_proto::fleet::fleet_client::FleetClient;
use pgleap_proto::fleet::*;
use pgleap_proto::raft::members_client::MembersClient;
use pgleap_proto::raft::{AddRequest, ListRequest};
use pgleap_proto::tls;
use prost::bytes::{Buf, BufMut};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tonic::codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Request, Status};

use super::*;
use crate::state::State;
use crate::testing::Pki;

struct Serving {
    pki: Pki,
    _data: tempfile::TempDir,
    raft: Raft,
    address: SocketAddr,
    stop: oneshot::Sender<()>,
    task: JoinHandle<Result<(), ServeError>>,
}

impl Serving {
    async fn start() -> Serving {
        let (pki, data) = (Pki::new(), tempfile::tempdir().unwrap());
        let config = ServeConfig {
            data_dir: data.path().join("data"),
            listen: "127.0.0.1:0".parse().unwrap(),
            tls_dir: pki.issue(Role::Coordinator, "c1"),
            member: 1,
            advertise: None,
            begin: true,
            join: vec![],
        };
        let coordinator = Coordinator::open(config).await.unwrap();
        let (raft, address) = (coordinator.raft.clone(), coordinator.address());
        let (stop, stopped) = oneshot::channel::<()>();
        let task = tokio::spawn(coordinator.run(async move { drop(stopped.await) }));
        Serving { pki, _data: data, raft, address, stop, task }
    }

    async fn channel(&self, role: Role) -> Channel {
        let endpoint = tls::endpoint(&self.address.to_string()).unwrap();
        self.pki.identity(role, "alice").connect(&endpoint, Role::Coordinator, "").await.unwrap()
    }

    async fn operator(&self) -> FleetClient<Channel> {
        FleetClient::new(self.channel(Role::Operator).await)
    }

    /// Somebody else is served.
    async fn serves(&self) {
        let mut other = MembersClient::new(self.channel(Role::Viewer).await);
        other.list(ListRequest {}).await.unwrap();
    }

    /// All that is agreed on, but for who asked for what.
    async fn state(&self) -> State {
        let state = self.raft.read().await.unwrap().state;
        State { applied: 0, audit: Default::default(), ..State::clone(&state) }
    }

    async fn stop(self) {
        self.stop.send(()).unwrap();
        self.task.await.unwrap().unwrap();
    }
}

fn refused<T: std::fmt::Debug>(result: Result<T, Status>, code: Code, says: &str) {
    let status = result.unwrap_err();
    assert_eq!(status.code(), code, "{status}");
    assert!(status.message().contains(says), "{status}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requests_out_of_bounds_are_refused_and_change_nothing() {
    let serving = Serving::start().await;
    let mut client = serving.operator().await;
    let toml = "[fleet]\nname = \"f\"\n".to_owned();
    let before = serving.state().await;

    let huge = "x".repeat(1 << 20);
    let cancel = CancelRequest { name: "x".into(), request_id: huge.clone() };
    refused(
        client.cancel(cancel).await,
        Code::InvalidArgument,
        "the request id has 1048576 bytes, at most 128",
    );
    let retry = RetryRequest { name: huge.clone(), request_id: String::new() };
    refused(client.retry(retry).await, Code::InvalidArgument, "at most 300 are possible");
    let accept = SwitchoverRequest { name: "x".into(), accept: vec!["y".into(); 1000], ..Default::default() };
    refused(client.switchover(accept).await, Code::InvalidArgument, "at most 300");
    let fleet = |toml: String| ApplyFleetRequest { toml, source: "f".into(), request_id: String::new() };
    let large = format!("{toml}# {}", "x".repeat(bounds::MAX_FLEET_BYTES));
    refused(client.apply_fleet(fleet(large)).await, Code::InvalidArgument, "at most 4194304 are read");
    let long = format!("[fleet]\nname = \"{huge}\"\n");
    refused(client.apply_fleet(fleet(long)).await, Code::InvalidArgument, "at most 4096 are possible");
    let many = format!("{toml}{}", "[[host]]\nwrong = 1\n".repeat(20_000));
    refused(client.apply_fleet(fleet(many)).await, Code::InvalidArgument, "more faults");
    // Larger than any message may be; the client's own bound is lifted.
    let mut unbounded = serving.operator().await.max_encoding_message_size(usize::MAX);
    let beyond =
        StatusRequest { name: "x".repeat(bounds::MAX_MESSAGE_BYTES + 1), ..StatusRequest::default() };
    refused(unbounded.status(beyond).await, Code::OutOfRange, "too large");
    let mut members = MembersClient::new(serving.channel(Role::Operator).await);
    let add = AddRequest { member: 2, address: huge.clone(), request_id: String::new() };
    refused(members.add(add).await, Code::InvalidArgument, "at most 300");
    let mut request = Request::new(StatusRequest::default());
    request.metadata_mut().insert("x", "y".repeat(200_000).parse().unwrap());
    assert!(client.status(request).await.is_err(), "headers without end");

    assert_eq!(serving.state().await, before);
    let state = serving.raft.latest().state;
    let longest = state.audit.entries().map(|entry| format!("{entry:?}").len()).max();
    assert!(longest.is_some_and(|longest| longest < 3000), "{longest:?}");
    serving.serves().await;
    serving.stop().await;
}

/// Bytes as they are, in the place of a message.
#[derive(Default)]
struct Raw;

impl Codec for Raw {
    type Encode = Vec<u8>;
    type Decode = Vec<u8>;
    type Encoder = Raw;
    type Decoder = Raw;

    fn encoder(&mut self) -> Raw {
        Raw
    }

    fn decoder(&mut self) -> Raw {
        Raw
    }
}

impl Encoder for Raw {
    type Item = Vec<u8>;
    type Error = Status;

    fn encode(&mut self, item: Vec<u8>, to: &mut EncodeBuf<'_>) -> Result<(), Status> {
        to.put_slice(&item);
        Ok(())
    }
}

impl Decoder for Raw {
    type Item = Vec<u8>;
    type Error = Status;

    fn decode(&mut self, from: &mut DecodeBuf<'_>) -> Result<Option<Vec<u8>>, Status> {
        Ok(Some(from.copy_to_bytes(from.remaining()).to_vec()))
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_no_message_is_refused() {
    let serving = Serving::start().await;
    let before = serving.state().await;
    let mut grpc = tonic::client::Grpc::new(serving.channel(Role::Operator).await);
    for method in ["Cancel", "ApplyFleet", "Switchover", "Nothing"] {
        grpc.ready().await.unwrap();
        let path = format!("/pgleap.fleet.v1.Fleet/{method}").parse().unwrap();
        // A field whose length is beyond the end, then garbage.
        let garbage = [vec![0x0a, 0xff, 0xff, 0xff, 0x7f], vec![0xde; 1000]].concat();
        let answer = grpc.unary(Request::new(garbage), path, Raw).await;
        let code = answer.map(|_| ()).unwrap_err().code();
        let expected = if method == "Nothing" { Code::Unimplemented } else { Code::Internal };
        assert_eq!(code, expected, "{method}");
    }
    assert_eq!(serving.state().await, before);
    serving.serves().await;
    serving.stop().await;
}

/// Reads until the other side closes.
async fn closed(mut stream: TcpStream) {
    let reading = async {
        let mut bytes = Vec::new();
        // Closed or reset: both are an end.
        let _ = stream.read_to_end(&mut bytes).await;
    };
    tokio::time::timeout(Duration::from_secs(60), reading).await.expect("the connection is closed");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_shows_no_certificate_is_cut_off_and_holds_up_nobody() {
    let serving = Serving::start().await;
    let before = serving.state().await;

    let mut garbage = TcpStream::connect(serving.address).await.unwrap();
    garbage.write_all(&[0xde; 4096]).await.unwrap();
    closed(garbage).await;
    let plain = Endpoint::from_shared(format!("http://{}", serving.address)).unwrap().connect().await;
    if let Ok(channel) = plain {
        FleetClient::new(channel).status(StatusRequest::default()).await.unwrap_err();
    }

    // Hundreds of connections from one address that say nothing, and one that says a little.
    let from = |address: &str| {
        let socket = TcpSocket::new_v4().unwrap();
        socket.bind(SocketAddr::new(address.parse().unwrap(), 0)).unwrap();
        socket.connect(serving.address)
    };
    let mut idle = Vec::new();
    for _ in 0..4 * bounds::MAX_HANDSHAKES_OF_ONE {
        idle.push(from("127.0.0.9").await.unwrap());
    }
    let mut slow = from("127.0.0.8").await.unwrap();
    slow.write_all(&[0x16, 0x03, 0x01]).await.unwrap();
    serving.serves().await;
    for stream in idle {
        closed(stream).await;
    }
    closed(slow).await;
    serving.serves().await;
    assert_eq!(serving.state().await, before);
    serving.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn certificate_holders_are_many_but_not_too_many() {
    let serving = Serving::start().await;
    let identity = serving.pki.identity(Role::Viewer, "victor");
    let connect = async || {
        let endpoint = tls::endpoint(&serving.address.to_string()).unwrap();
        let channel = identity.connect(&endpoint, Role::Coordinator, "").await.ok()?;
        let mut client = MembersClient::new(channel);
        client.list(ListRequest {}).await.ok().map(|_| client)
    };
    let mut held = Vec::new();
    while let Some(client) = connect().await {
        held.push(client);
        assert!(held.len() <= bounds::MAX_CONNECTIONS_OF_ONE);
    }
    assert_eq!(held.len(), bounds::MAX_CONNECTIONS_OF_ONE);
    // Those that are connected go on, and a place that is given back can be had.
    held[0].list(ListRequest {}).await.unwrap();
    held.truncate(1);
    let again = async {
        while connect().await.is_none() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), again).await.unwrap();
    serving.stop().await;
}
