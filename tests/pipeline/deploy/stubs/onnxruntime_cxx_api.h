// Only what classify.cpp uses of ONNX Runtime's C++ interface, declared as there, without bodies: for a compiler's check
// of the syntax where the real headers cannot be had.
#pragma once
#include <cstddef>
#include <cstdint>
#include <vector>

#define ORT_TSTR(X) X
enum OrtLoggingLevel { ORT_LOGGING_LEVEL_ERROR = 3 };
enum OrtAllocatorType { OrtArenaAllocator = 1 };
enum OrtMemType { OrtMemTypeDefault = 0 };
struct OrtMemoryInfo;

namespace Ort {
struct Env {
    Env(OrtLoggingLevel, const char*);
};
struct SessionOptions {
    SessionOptions();
    SessionOptions& AddConfigEntry(const char*, const char*);
};
struct RunOptions {
    explicit RunOptions(std::nullptr_t);
};
struct MemoryInfo {
    static MemoryInfo CreateCpu(OrtAllocatorType, OrtMemType);
    operator OrtMemoryInfo*() const;
};
struct TensorTypeAndShapeInfo {
    size_t GetElementCount() const;
};
struct Value {
    Value(const Value&) = delete;
    Value(Value&&) noexcept;
    template <typename T>
    static Value CreateTensor(const OrtMemoryInfo*, T*, size_t, const int64_t*, size_t);
    TensorTypeAndShapeInfo GetTensorTypeAndShapeInfo() const;
    template <typename T>
    const T* GetTensorData() const;
};
struct Session {
    Session(const Env&, const char*, const SessionOptions&);
    std::vector<Value> Run(const RunOptions&, const char* const*, const Value*, size_t, const char* const*, size_t);
};
}  // namespace Ort
