// Classify pictures with a TensorRT engine on its C++ interface; that of TensorRT-RTX is the same.
//
//   g++ -std=c++17 -O2 classify_tensorrt.cpp -I CUDA/include -L CUDA/lib64 -lcudart -lnvinfer -o classify_tensorrt
//   ./classify_tensorrt engine.tensorrt.sm87.plan picture.ppm
//
// With TensorRT-RTX: -ltensorrt_rtx instead of -lnvinfer. An engine loads on the architecture and the version of its
// sidecar alone; the build_command there makes it again elsewhere. Pictures are binary PPM or PGM files.

#include <NvInfer.h>
#include <cuda_runtime_api.h>

#include <iostream>
#include <iterator>
#include <memory>

#include "picture.hpp"

struct Logger : nvinfer1::ILogger {
    void log(Severity severity, const char* text) noexcept override {
        if (severity <= Severity::kERROR) std::cerr << text << "\n";
    }
};

void checked(cudaError_t status) {
    if (status != cudaSuccess) throw std::runtime_error(cudaGetErrorString(status));
}

// Memory on the GPU, freed with the value.
struct OnDevice {
    explicit OnDevice(size_t size) { checked(cudaMalloc(&pointer, size)); }
    ~OnDevice() { cudaFree(pointer); }
    OnDevice(const OnDevice&) = delete;
    OnDevice& operator=(const OnDevice&) = delete;
    void* pointer = nullptr;
};

std::vector<char> read_file(const std::string& path) {
    std::ifstream file(path, std::ios::binary);
    if (!file) throw std::runtime_error(path + " cannot be read");
    return {std::istreambuf_iterator<char>(file), {}};
}

// An engine built for larger batches only sees the picture as often as its smallest one asks.
int smallest_batch(const nvinfer1::ICudaEngine& engine) {
    return int(engine.getProfileShape(INPUT, 0, nvinfer1::OptProfileSelector::kMIN).d[0]);
}

int main(int count, char** words) {
    if (count < 3) {
        std::cerr << "usage: " << words[0] << " engine.plan picture.ppm ...\n";
        return 2;
    }
    try {
        Logger logger;
        const std::vector<char> plan = read_file(words[1]);
        std::unique_ptr<nvinfer1::IRuntime> runtime(nvinfer1::createInferRuntime(logger));
        std::unique_ptr<nvinfer1::ICudaEngine> engine(runtime->deserializeCudaEngine(plan.data(), plan.size()));
        if (!engine) throw std::runtime_error("the engine does not load here: build it with the line of its .json");
        std::unique_ptr<nvinfer1::IExecutionContext> context(engine->createExecutionContext());
        const int batch = smallest_batch(*engine);
        nvinfer1::Dims shape{int(SHAPE.size()), {}};
        for (size_t at = 0; at < SHAPE.size(); ++at) shape.d[at] = at ? SHAPE[at] : batch;
        if (!context->setInputShape(INPUT, shape)) throw std::runtime_error("the engine takes another input");
        const nvinfer1::Dims answer = context->getTensorShape(OUTPUT);
        const size_t classes = size_t(answer.d[answer.nbDims - 1]);
        const std::vector<std::string> labels = read_labels("labels.txt");
        const size_t size = size_t(HEIGHT) * WIDTH * CHANNELS;
        OnDevice given(batch * size * sizeof(Element)), made(batch * classes * sizeof(float));
        context->setTensorAddress(INPUT, given.pointer);
        context->setTensorAddress(OUTPUT, made.pointer);
        cudaStream_t stream;
        checked(cudaStreamCreate(&stream));
        for (int at = 2; at < count; ++at) {
            const std::vector<Element> picture = prepare(words[at]);
            for (int row = 0; row < batch; ++row) {
                void* to = static_cast<Element*>(given.pointer) + row * size;
                checked(cudaMemcpy(to, picture.data(), size * sizeof(Element), cudaMemcpyHostToDevice));
            }
            if (!context->enqueueV3(stream)) throw std::runtime_error("the GPU did not run the engine");
            checked(cudaStreamSynchronize(stream));
            std::vector<float> logits(classes);
            checked(cudaMemcpy(logits.data(), made.pointer, classes * sizeof(float), cudaMemcpyDeviceToHost));
            std::cout << words[at] << ": " << told(logits.data(), classes, labels) << "\n";
        }
        checked(cudaStreamDestroy(stream));
    } catch (const std::exception& error) {
        std::cerr << error.what() << "\n";
        return 1;
    }
    return 0;
}
