//! How processes on GPUs find each other and learn of each other's failures: TCP connections of all to process 0.
//!
//! NCCL waits for ever for a process that is gone. So each process watches its connections: a message that says what went
//! wrong, or a connection that ends without a farewell, ends it, and process 0 passes the message on.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

/// First bytes of a connection.
const HELLO: [u8; 8] = *b"nadir001";

/// How long processes wait for each other.
const PATIENCE: Duration = Duration::from_secs(300);

/// Bytes that process 0 sends to all.
pub const TOKEN: usize = 128;

/// The open connections: of process 0 to all others, of the others to process 0.
pub struct Rendezvous {
    peers: Arc<Mutex<Vec<TcpStream>>>,
}

impl Rendezvous {
    /// Meets all others; gives process 0's token to everyone. `token` is called in process 0 alone; `fail` wherever
    /// another process fails, with what it said.
    pub fn meet(
        rank: usize,
        size: usize,
        (host, port): &(String, u16),
        token: impl FnOnce() -> Result<[u8; TOKEN]>,
        fail: impl Fn(&str) + Clone + Send + 'static,
    ) -> Result<(Self, [u8; TOKEN])> {
        let place = format!("{host}:{port}");
        let (streams, token) = match rank {
            0 => welcome(size, *port, token()?).with_context(|| format!("meeting the others at port {port}"))?,
            _ => knock(rank, &place).with_context(|| format!("meeting process 0 at {place}"))?,
        };
        let peers = Arc::new(Mutex::new(Vec::new()));
        for (from, stream) in streams {
            let mut ear = stream.try_clone()?;
            lock(&peers).push(stream);
            let (peers, fail) = (peers.clone(), fail.clone());
            std::thread::Builder::new().name(format!("watch {from}")).spawn(move || {
                let message = match heard(&mut ear) {
                    Ok(message) if message.is_empty() => return,
                    Ok(message) => message,
                    Err(_) => format!("process {from} of {size} is gone"),
                };
                if rank == 0 {
                    tell(&peers, &message);
                }
                fail(&message);
            })?;
        }
        Ok((Self { peers }, token))
    }

    /// Tells the others what went wrong here, or with nothing that this process is done.
    pub fn leave(&self, message: &str) {
        tell(&self.peers, message);
    }
}

fn lock(peers: &Mutex<Vec<TcpStream>>) -> std::sync::MutexGuard<'_, Vec<TcpStream>> {
    peers.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}

fn tell(peers: &Mutex<Vec<TcpStream>>, message: &str) {
    let message = &message.as_bytes()[..message.len().min(4096)];
    let frame = [&(message.len() as u32).to_le_bytes(), message].concat();
    for stream in &mut *lock(peers) {
        // One that is gone already needs no message.
        let _ = stream.write_all(&frame);
    }
}

fn heard(stream: &mut TcpStream) -> Result<String> {
    let mut length = [0; 4];
    stream.read_exact(&mut length)?;
    let length = u32::from_le_bytes(length) as usize;
    ensure!(length <= 4096, "a message of {length} bytes, at most 4096");
    let mut message = vec![0; length];
    stream.read_exact(&mut message)?;
    Ok(String::from_utf8_lossy(&message).into_owned())
}

type Met = (Vec<(usize, TcpStream)>, [u8; TOKEN]);

fn welcome(size: usize, port: u16, token: [u8; TOKEN]) -> Result<Met> {
    let listener = TcpListener::bind(("0.0.0.0", port))?;
    listener.set_nonblocking(true)?;
    let start = Instant::now();
    let mut streams: Vec<(usize, TcpStream)> = Vec::new();
    while streams.len() + 1 < size {
        let mut stream = match listener.accept() {
            Ok((stream, _)) => stream,
            Err(e) if e.kind() == std::io::ErrorKind::WouldBlock => {
                ensure!(start.elapsed() < PATIENCE, "{} of {size} processes came", streams.len() + 1);
                std::thread::sleep(Duration::from_millis(20));
                continue;
            }
            Err(e) => return Err(e.into()),
        };
        stream.set_nonblocking(false)?;
        stream.set_read_timeout(Some(Duration::from_secs(10)))?;
        let mut hello = [0; 12];
        // Anyone may connect; who does not say hello is none of us.
        if stream.read_exact(&mut hello).is_err() || hello[..8] != HELLO {
            continue;
        }
        let rank = u32::from_le_bytes([hello[8], hello[9], hello[10], hello[11]]) as usize;
        ensure!(rank > 0 && rank < size, "process {rank} came, expected 1 to {}", size - 1);
        ensure!(streams.iter().all(|(other, _)| *other != rank), "process {rank} came twice");
        stream.set_read_timeout(None)?;
        streams.push((rank, stream));
    }
    for (_, stream) in &mut streams {
        stream.write_all(&token)?;
    }
    Ok((streams, token))
}

fn knock(rank: usize, place: &str) -> Result<Met> {
    let start = Instant::now();
    let mut stream = loop {
        // Tries all addresses of the name: process 0 listens at those of IPv4.
        match TcpStream::connect(place) {
            Ok(stream) => break stream,
            Err(error) if start.elapsed() >= PATIENCE => return Err(error.into()),
            // Process 0 may come later.
            Err(_) => std::thread::sleep(Duration::from_millis(100)),
        }
    };
    stream.write_all(&[&HELLO[..], &(rank as u32).to_le_bytes()].concat())?;
    let mut token = [0; TOKEN];
    stream.read_exact(&mut token)?;
    Ok((vec![(0, stream)], token))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc::channel;

    /// Three processes, as threads: they share a token; the failure of one reaches the others, a farewell does not.
    #[test]
    fn a_failure_reaches_all() {
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let (heard, said) = channel();
        let meet = |rank: usize| {
            let (heard, master) = (heard.clone(), ("127.0.0.1".to_owned(), port));
            std::thread::spawn(move || {
                let fail = move |message: &str| heard.send((rank, message.to_owned())).unwrap();
                Rendezvous::meet(rank, 3, &master, || Ok([7; TOKEN]), fail).unwrap()
            })
        };
        let met: Vec<_> = [meet(0), meet(1), meet(2)].map(|thread| thread.join().unwrap()).into();
        assert!(met.iter().all(|(_, token)| *token == [7; TOKEN]));
        met[1].0.leave("");
        met[2].0.leave("process 2 of 3: the disk is full");
        let mut all: Vec<_> = (0..3).map(|_| said.recv_timeout(Duration::from_secs(20)).unwrap()).collect();
        all.sort();
        let message = |rank: usize| (rank, "process 2 of 3: the disk is full".to_owned());
        // Process 0 passes the message on to all, so to the one that failed too.
        assert_eq!(all, [message(0), message(1), message(2)]);
    }
}
