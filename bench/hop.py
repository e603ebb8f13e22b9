import socket, sys, time, threading, multiprocessing as mp, json, os
import numpy as np, zmq
from zmpsl.transport.link import *
from zmpsl.transport.outbox import Outbox
from zmpsl.transport.task import *
from zmpsl.codecs import NONE

def zsend(port_q, size, n, done):
    ctx=zmq.Context(); 
    inbox=Inbox(ctx,"tcp://127.0.0.1:*",1<<30); 
    ep=port_q.get(); 
    ob=Outbox(0,lambda op:NONE,64<<20)
    l=Link(ctx,"x",ep,ob); port_q2.put(inbox.endpoint)
    x=np.random.rand(size//4).astype(np.float32)
    poller=zmq.Poller(); poller.register(inbox.socket,zmq.POLLIN)
    def run(n):
        sent=0; got=0
        while got<n or sent<n:
            while sent<n and not l.blocked and l.outbox.held<2:
                l.send(Task(Op.FORWARD,1,0,0,batch=sent,tensor=x)); sent+=1
            poller.register(l.socket, zmq.POLLOUT) if l.blocked else (l.socket in poller and poller.unregister(l.socket))
            poller.poll()
            while True:
                r=inbox.receive()
                if r is None: break
                h,t=r
                if h.credit: l.outbox.grant(0,h.credit)
                if t is not None and t.op==Op.CLOSE: got=n; 
            l.flush()
    run(n//4+1); 
    c0=time.process_time(); t=time.perf_counter(); run(n); dt=time.perf_counter()-t; c=time.process_time()-c0
    done.put((dt,c))
    l.close(1)
def zrecv(size,n):
    ctx=zmq.Context(); inbox=Inbox(ctx,"tcp://127.0.0.1:*",1<<30); port_q.put(inbox.endpoint)
    ob=Outbox(0,lambda op:NONE,64<<20); l=Link(ctx,"y",port_q2.get(),ob)
    poller=zmq.Poller(); poller.register(inbox.socket,zmq.POLLIN)
    for k in (n//4+1,n):
        c0=time.process_time()
        got=0
        while got<k:
            poller.poll()
            while True:
                r=inbox.receive()
                if r is None: break
                h,t=r
                if t is not None and t.op==Op.FORWARD: got+=1; l.outbox.owe(0,t.nbytes); 
                r=t=None
            l.flush()
        l.send(Task(Op.CLOSE,1,0,0)); 
        cpu=time.process_time()-c0
    time.sleep(.2)
    rq.put((cpu,inbox.pool.allocations))
    l.close(1)
def raw(size,n):
    s=socket.socket(); s.bind(("127.0.0.1",0)); s.listen(1); 
    def rx(q):
        c,_=s.accept(); b=bytearray(size); m=memoryview(b)
        for k in (n//4+1,n):
            c0=time.process_time()
            for _ in range(k):
                g=0
                while g<size: g+=c.recv_into(m[g:])
            c.sendall(b"x"); cpu=time.process_time()-c0
        q.put(cpu)
    q=mp.Queue(); p=mp.Process(target=rx,args=(q,)); p.start()
    c=socket.create_connection(s.getsockname()); c.setsockopt(socket.IPPROTO_TCP,socket.TCP_NODELAY,1)
    x=memoryview(np.random.rand(size//4).astype(np.float32)).cast("B")
    for k in (n//4+1,n):
        c0=time.process_time();t=time.perf_counter()
        for _ in range(k): c.sendall(x)
        c.recv(1); dt=time.perf_counter()-t; cc=time.process_time()-c0
    cr=q.get(); p.join()
    return dt,cc,cr
if __name__=="__main__":
    for size,n in ((65536,4000),(1<<20,800),(16<<20,60),(64<<20,16)):
        for rep in range(2):
            port_q=mp.Queue(); port_q2=mp.Queue(); rq=mp.Queue(); dq=mp.Queue()
            r=mp.Process(target=zrecv,args=(size,n)); r.start()
            sp=mp.Process(target=zsend,args=(port_q,size,n,dq)); sp.start()
            dt,c=dq.get(); rc,al=rq.get(); r.join(); sp.join()
            gb=size*n/1e9
            a=raw(size,n)
            print(f"{size>>10:6d}K zmq {gb/dt:.2f} GB/s cpu {c/gb:.2f}+{rc/gb:.2f} alloc {al} | raw {gb/a[0]:.2f} cpu {a[1]/gb:.2f}+{a[2]/gb:.2f} ratio {a[0]/dt:.2f}",flush=True)
