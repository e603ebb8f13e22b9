/* zmpsl._codecs: buffers in, buffers out. Checks sizes, drops the GIL for long work, turns a status into ValueError. */
#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include "codecs.h"

#include <stdlib.h>

/* Below this many bytes, handing over the GIL costs more than it gives. */
#define GIL_BYTES (32 * 1024)

typedef struct module_state {
    const zc_isa *isa;
} module_state;

static const zc_isa *isa_of(PyObject *module)
{
    return ((module_state *)PyModule_GetState(module))->isa;
}

/* The buffers of one call; release() is safe at any point after a zeroed start. */
typedef struct buffers {
    Py_buffer src;
    Py_buffer mask;
    Py_buffer dst;
    Py_buffer rest;
} buffers;

static PyObject *finish(buffers *b, PyObject *result)
{
    Py_buffer *all[] = {&b->src, &b->mask, &b->dst, &b->rest};
    for (size_t i = 0; i < sizeof all / sizeof all[0]; i++) {
        if (all[i]->obj != NULL) {
            PyBuffer_Release(all[i]);
        }
    }
    return result;
}

static int overlap(const Py_buffer *a, const Py_buffer *b)
{
    uintptr_t x = (uintptr_t)a->buf;
    uintptr_t y = (uintptr_t)b->buf;
    return a->len > 0 && b->len > 0 && x < y + (size_t)b->len && y < x + (size_t)a->len;
}

/* Whether the parts fit together; sets the error where they do not. */
static int whole(const char *what, Py_ssize_t size, size_t unit)
{
    if ((size_t)size % unit != 0) {
        PyErr_Format(PyExc_ValueError, "the %s has %zd bytes, which is no whole number of values of %zu bytes", what,
                     size, unit);
        return 0;
    }
    return 1;
}

static int room(const buffers *b, size_t need)
{
    /* a buffer that the call does not have is empty, and overlaps nothing */
    if (overlap(&b->src, &b->dst) || overlap(&b->mask, &b->dst) || overlap(&b->src, &b->rest) ||
        overlap(&b->dst, &b->rest)) {
        PyErr_SetString(PyExc_ValueError, "the destination overlaps an input; inputs are never written");
        return 0;
    }
    if ((size_t)b->dst.len < need) {
        PyErr_Format(PyExc_ValueError, "the destination has %zd bytes, up to %zu are needed", b->dst.len, need);
        return 0;
    }
    return 1;
}

static size_t unit_of(enum zc_codec_id id)
{
    return id == ZC_BYTES ? 1 : 4;
}

static PyObject *encode(PyObject *module, PyObject *args, enum zc_codec_id id)
{
    buffers b = {0};
    float step = 1;
    size_t size;
    int parsed = id == ZC_QZ ? PyArg_ParseTuple(args, "y*w*f", &b.src, &b.dst, &step)
                             : PyArg_ParseTuple(args, "y*w*", &b.src, &b.dst);
    if (!parsed || !whole("source", b.src.len, unit_of(id))) {
        return finish(&b, NULL);
    }
    if (!(step >= ZC_STEP_MIN && step <= ZC_STEP_MAX)) {
        PyErr_SetString(PyExc_ValueError, "the step must lie between 2**-100 and 2**100");
        return finish(&b, NULL);
    }
    size_t n = (size_t)b.src.len / unit_of(id);
    if (!room(&b, zc_bound(id, n))) {
        return finish(&b, NULL);
    }
    zc_encode_fn function = isa_of(module)->encode[id];
    if (b.src.len >= GIL_BYTES) {
        Py_BEGIN_ALLOW_THREADS
        size = function(b.src.buf, n, step, b.dst.buf);
        Py_END_ALLOW_THREADS
    } else {
        size = function(b.src.buf, n, step, b.dst.buf);
    }
    return finish(&b, PyLong_FromSize_t(size));
}

static const char *text_of(int status)
{
    switch (status) {
    case ZC_TRUNCATED:
        return "it ends too early";
    case ZC_TRAILING:
        return "bytes are left over";
    case ZC_TABLE:
        return "its code lengths are no complete prefix code";
    case ZC_STEP:
        return "its step is out of range";
    default:
        return "its counts contradict each other";
    }
}

static PyObject *decode(PyObject *module, PyObject *args, enum zc_codec_id id)
{
    buffers b = {0};
    int status;
    if (!PyArg_ParseTuple(args, "y*w*", &b.src, &b.dst) || !whole("destination", b.dst.len, unit_of(id)) ||
        !room(&b, 0)) {
        return finish(&b, NULL);
    }
    size_t n = (size_t)b.dst.len / unit_of(id);
    zc_decode_fn function = isa_of(module)->decode[id];
    if (b.dst.len >= GIL_BYTES) {
        Py_BEGIN_ALLOW_THREADS
        status = function(b.src.buf, (size_t)b.src.len, b.dst.buf, n);
        Py_END_ALLOW_THREADS
    } else {
        status = function(b.src.buf, (size_t)b.src.len, b.dst.buf, n);
    }
    if (status != ZC_OK) {
        PyErr_Format(PyExc_ValueError, "an encoding of %zd bytes cannot be unpacked into %zd: %s", b.src.len,
                     b.dst.len, text_of(status));
        return finish(&b, NULL);
    }
    return finish(&b, PyLong_FromSsize_t(b.dst.len));
}

static PyObject *bound(PyObject *args, enum zc_codec_id id)
{
    Py_ssize_t n;
    if (!PyArg_ParseTuple(args, "n", &n)) {
        return NULL;
    }
    if (n < 0 || n > PY_SSIZE_T_MAX / 16) {
        PyErr_Format(PyExc_ValueError, "%zd is no number of values", n);
        return NULL;
    }
    return PyLong_FromSize_t(zc_bound(id, (size_t)n));
}

#define CODEC(name, id)                                                                                                \
    static PyObject *name##_encode_into(PyObject *module, PyObject *args)                                              \
    {                                                                                                                  \
        return encode(module, args, id);                                                                               \
    }                                                                                                                  \
    static PyObject *name##_decode_into(PyObject *module, PyObject *args)                                              \
    {                                                                                                                  \
        return decode(module, args, id);                                                                               \
    }                                                                                                                  \
    static PyObject *name##_bound(PyObject *module, PyObject *args)                                                    \
    {                                                                                                                  \
        (void)module;                                                                                                  \
        return bound(args, id);                                                                                        \
    }

CODEC(bf16, ZC_BF16)
CODEC(int8, ZC_INT8)
CODEC(int4, ZC_INT4)
CODEC(bitmap, ZC_BITMAP)
CODEC(bytes, ZC_BYTES)
CODEC(huff, ZC_HUFF)
CODEC(bf16_huff, ZC_BF16_HUFF)
CODEC(qz, ZC_QZ)

static PyObject *topk_encode_into(PyObject *module, PyObject *args)
{
    buffers b = {0};
    double share;
    size_t size;
    if (!PyArg_ParseTuple(args, "y*w*d", &b.src, &b.dst, &share) || !whole("source", b.src.len, 4)) {
        return finish(&b, NULL);
    }
    if (!(share > 0 && share <= 1)) {
        PyErr_SetString(PyExc_ValueError, "the share must lie above 0 and be 1 at most");
        return finish(&b, NULL);
    }
    size_t n = (size_t)b.src.len / 4;
    if (!room(&b, zc_bound(ZC_BF16_HUFF, n))) {
        return finish(&b, NULL);
    }
    const zc_isa *isa = isa_of(module);
    Py_BEGIN_ALLOW_THREADS
    size = isa->topk(b.src.buf, n, share, b.dst.buf);
    Py_END_ALLOW_THREADS
    return finish(&b, PyLong_FromSize_t(size));
}

static PyObject *mean_square(PyObject *module, PyObject *args)
{
    buffers b = {0};
    double result;
    if (!PyArg_ParseTuple(args, "y*", &b.src) || !whole("source", b.src.len, 4)) {
        return finish(&b, NULL);
    }
    const zc_isa *isa = isa_of(module);
    Py_BEGIN_ALLOW_THREADS
    result = isa->mean_square(b.src.buf, (size_t)b.src.len / 4);
    Py_END_ALLOW_THREADS
    return finish(&b, PyFloat_FromDouble(result));
}

static PyObject *add_into(PyObject *module, PyObject *args)
{
    buffers b = {0};
    double weight;
    int left;
    if (!PyArg_ParseTuple(args, "y*dw*w*", &b.src, &weight, &b.dst, &b.rest) || !whole("source", b.src.len, 4)) {
        return finish(&b, NULL);
    }
    size_t n = (size_t)b.src.len / 4;
    if ((size_t)b.dst.len != 8 * n || (size_t)b.rest.len != 8 * n) {
        PyErr_Format(PyExc_ValueError, "%zu values need %zu bytes of sums and of rests, not %zd and %zd", n, 8 * n,
                     b.dst.len, b.rest.len);
        return finish(&b, NULL);
    }
    if (!room(&b, 0)) {
        return finish(&b, NULL);
    }
    const zc_isa *isa = isa_of(module);
    Py_BEGIN_ALLOW_THREADS
    left = isa->add(b.src.buf, n, weight, b.dst.buf, b.rest.buf);
    Py_END_ALLOW_THREADS
    return finish(&b, PyBool_FromLong(left));
}

static PyObject *mask_into(PyObject *module, PyObject *args)
{
    buffers b = {0};
    if (!PyArg_ParseTuple(args, "y*w*", &b.src, &b.dst) || !whole("source", b.src.len, 4)) {
        return finish(&b, NULL);
    }
    size_t n = (size_t)b.src.len / 4;
    if (!room(&b, (n + 7) / 8)) {
        return finish(&b, NULL);
    }
    const zc_isa *isa = isa_of(module);
    Py_BEGIN_ALLOW_THREADS
    isa->mask(b.src.buf, n, b.dst.buf);
    Py_END_ALLOW_THREADS
    return finish(&b, PyLong_FromSize_t((n + 7) / 8));
}

/* The bits set in a mask for n values, or -1 with an error set. */
static Py_ssize_t count_of(const zc_isa *isa, const Py_buffer *mask, size_t n)
{
    Py_ssize_t count;
    if ((size_t)mask->len != (n + 7) / 8) {
        PyErr_Format(PyExc_ValueError, "the mask has %zd bytes, %zu values need %zu", mask->len, n, (n + 7) / 8);
        return -1;
    }
    count = isa->count(mask->buf, n);
    if (count < 0) {
        PyErr_Format(PyExc_ValueError, "the mask has bits set beyond its %zu values", n);
    }
    return count;
}

static PyObject *pack_into(PyObject *module, PyObject *args)
{
    buffers b = {0};
    if (!PyArg_ParseTuple(args, "y*y*w*", &b.src, &b.mask, &b.dst) || !whole("source", b.src.len, 4)) {
        return finish(&b, NULL);
    }
    size_t n = (size_t)b.src.len / 4;
    const zc_isa *isa = isa_of(module);
    Py_ssize_t count = count_of(isa, &b.mask, n);
    if (count < 0 || !room(&b, 4 * (size_t)count)) {
        return finish(&b, NULL);
    }
    Py_BEGIN_ALLOW_THREADS
    isa->pack(b.src.buf, b.mask.buf, n, b.dst.buf, (size_t)count);
    Py_END_ALLOW_THREADS
    return finish(&b, PyLong_FromSsize_t(4 * count));
}

static PyObject *unpack_into(PyObject *module, PyObject *args)
{
    buffers b = {0};
    if (!PyArg_ParseTuple(args, "y*y*w*", &b.src, &b.mask, &b.dst) || !whole("destination", b.dst.len, 4)) {
        return finish(&b, NULL);
    }
    size_t n = (size_t)b.dst.len / 4;
    const zc_isa *isa = isa_of(module);
    Py_ssize_t count = count_of(isa, &b.mask, n);
    if (count < 0 || !room(&b, 0)) {
        return finish(&b, NULL);
    }
    if (b.src.len != 4 * count) {
        PyErr_Format(PyExc_ValueError, "the source has %zd bytes, the mask asks for %zd", b.src.len, 4 * count);
        return finish(&b, NULL);
    }
    Py_BEGIN_ALLOW_THREADS
    isa->unpack(b.src.buf, (size_t)count, b.mask.buf, n, b.dst.buf);
    Py_END_ALLOW_THREADS
    return finish(&b, PyLong_FromSsize_t(b.dst.len));
}

#define METHODS(name)                                                                                                  \
    {#name "_encode_into", name##_encode_into, METH_VARARGS, NULL},                                                    \
        {#name "_decode_into", name##_decode_into, METH_VARARGS, NULL},                                                \
        {#name "_bound", name##_bound, METH_VARARGS, NULL}

static PyMethodDef methods[] = {
    METHODS(bf16),
    METHODS(int8),
    METHODS(int4),
    METHODS(bitmap),
    METHODS(bytes),
    METHODS(huff),
    METHODS(bf16_huff),
    METHODS(qz),
    {"topk_encode_into", topk_encode_into, METH_VARARGS, NULL},
    {"mean_square", mean_square, METH_VARARGS, NULL},
    {"add_into", add_into, METH_VARARGS, NULL},
    {"mask_into", mask_into, METH_VARARGS, NULL},
    {"pack_into", pack_into, METH_VARARGS, NULL},
    {"unpack_into", unpack_into, METH_VARARGS, NULL},
    {NULL, NULL, 0, NULL},
};

static int execute(PyObject *module)
{
    module_state *state = PyModule_GetState(module);
    const char *name = getenv("ZMPSL_ISA");
    state->isa = zc_pick(name);
    if (state->isa == NULL) {
        PyErr_Format(PyExc_ValueError, "ZMPSL_ISA is '%s', which is not known or cannot run here; unset it", name);
        return -1;
    }
    return PyModule_AddStringConstant(module, "ISA", state->isa->name);
}

static PyModuleDef_Slot slots[] = {{Py_mod_exec, (void *)execute}, {0, NULL}};

static struct PyModuleDef definition = {
    PyModuleDef_HEAD_INIT, "zmpsl._codecs", "C kernels of the codecs; zmpsl.kernels is their face.",
    sizeof(module_state),  methods,         slots, NULL, NULL, NULL,
};

PyMODINIT_FUNC PyInit__codecs(void)
{
    return PyModuleDef_Init(&definition);
}
